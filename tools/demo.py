#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a small SegFormer with SAPA on generated pictures, and look at what its upsampler does.

Makes the data set if it is missing, tests the untrained model, trains, tests again, and draws a picture. Everything
goes through the same tools and configs as real work; run it from the root of the repository.
"""

import argparse
import json
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import torch
from _common import fail, register_toolbox
from make_demo_dataset import is_complete, make_dataset
from mmengine.config import Config, DictAction
from mmengine.runner import set_random_seed
from rich.console import Console
from rich.table import Table

TOOLS = Path(__file__).parent
CONFIG = TOOLS.parent / 'configs' / 'demo' / 'segformer_mit-b0_sapa-g_demo.py'
# The last of the six takes the stage of stride 8 to the size of stride 4, both straight from the backbone.
UPSAMPLER = 5


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: work_dirs/demo')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='override settings of the config: key=value')
    return parser.parse_args()


def run_tool(name, *args, log=None):
    """Run a tool, with its output on the screen or in the file ``log``; end with its status if it fails."""
    sys.stdout.flush()
    command = [sys.executable, str(TOOLS / name), str(CONFIG), *map(str, args)]
    if log is None:
        status = subprocess.run(command).returncode
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('w') as out:
            status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode
        if status:
            print(log.read_text()[-3000:], file=sys.stderr)
    if status:
        raise SystemExit(status)


@contextmanager
def quietly(log):
    """Send what libraries print and warn of to a file; show it if they fail."""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open('w') as out, redirect_stdout(out), redirect_stderr(out):
            yield
    except BaseException:
        print(log.read_text()[-3000:], file=sys.stderr)
        raise


def test(checkpoint, work_dir, options):
    """Return the mIoU in percent that tools/test.py measures."""
    run_tool('test.py', checkpoint, '--work-dir', work_dir, *options, log=work_dir / 'test.log')
    return json.loads(max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime).read_text())['mIoU']


def save_untrained(cfg, path):
    """Write the model as it is before the first step."""
    from mmengine.registry import MODELS, DefaultScope

    set_random_seed(cfg.randomness.seed)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(meta=dict(), state_dict=model.state_dict()), path)


def choose_points(truth):
    """Choose points ``(y, x)``: deep inside an object, on both sides of its boundary, and on a stripe."""
    # Distance to the border of the own region; the border of the picture counts as one.
    depth = np.zeros(truth.shape, np.float32)
    for label in np.unique(truth):
        depth += cv2.distanceTransform(np.pad((truth == label).astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    objects = np.isin(truth, (1, 2))
    inside = np.unravel_index(np.argmax(np.where(objects, depth, 0)), truth.shape)
    # From there straight to the nearest background; then a little less far, and a little farther.
    background = np.argwhere(truth == 0)
    crossing = background[np.argmin(((background - inside) ** 2).sum(1))]
    step = (crossing - inside) / np.linalg.norm(crossing - inside)
    edge, outside = (np.clip(np.round(crossing + n * step), 0, np.array(truth.shape) - 1) for n in (-4, 3))
    stripe = np.unravel_index(np.argmax(np.where(truth == 4, depth, 0)), truth.shape)
    return [tuple(map(int, point)) for point in (inside, edge, outside, stripe)]


def draw(cfg, checkpoint, path):
    """Segment one picture of the validation split and save it with the affiliation kernels of a few points."""
    from mmseg.apis import inference_model, init_model

    from sapa_mm.visualization import draw_affiliation

    dataset = cfg.val_dataloader.dataset
    folder = Path(dataset.data_root) / dataset.data_prefix.seg_map_path
    truths = ((file, cv2.imread(str(file), cv2.IMREAD_UNCHANGED)) for file in sorted(folder.glob('*.png')))
    name, truth = next((file.name, labels) for file, labels in truths if len(np.unique(labels)) == 5)
    file = Path(dataset.data_root) / dataset.data_prefix.img_path / name

    model = init_model(cfg, str(checkpoint), device='cuda:0' if torch.cuda.is_available() else 'cpu')
    upsampler = model.decode_head.upsamplers[UPSAMPLER]
    seen = []
    handle = upsampler.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    prediction = inference_model(model, str(file)).pred_sem_seg.data[0].cpu().numpy()
    handle.remove()
    feature, guide = seen[0]
    with torch.no_grad():
        kernels = upsampler.kernels(feature, guide)[0]
    image = cv2.imread(str(file))[..., ::-1]
    draw_affiliation(
        image, kernels, choose_points(truth), tuple(feature.shape[2:]), truth, prediction, dataset.metainfo.palette
    ).savefig(path, dpi=120)


def main():
    args = parse_args()
    console = Console()
    start = time.monotonic()
    cfg = Config.fromfile(CONFIG)
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    if options:
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        cfg.merge_from_dict(parser.parse_args(options).cfg_options)
    with quietly(args.work_dir / 'demo.log'):
        register_toolbox(cfg)

    data_root = Path(cfg.train_dataloader.dataset.data_root)
    if not is_complete(data_root):
        console.rule('Making the data set')
        try:
            make_dataset(data_root)
        except FileExistsError as error:
            fail(error)

    console.rule('Testing the untrained model')
    untrained = args.work_dir / 'untrained' / 'untrained.pth'
    with quietly(untrained.parent / 'initialisation.log'):
        save_untrained(cfg, untrained)
    before = test(untrained, untrained.parent, options)

    console.rule('Training')
    run_tool('train.py', '--brief', '--work-dir', args.work_dir, *options)
    trained = args.work_dir / f'iter_{cfg.train_cfg.max_iters}.pth'

    console.rule('Testing the trained model')
    after = test(trained, args.work_dir / 'trained', options)
    picture = args.work_dir / 'demo.png'
    with quietly(args.work_dir / 'picture.log'):
        draw(cfg, trained, picture)

    table = Table(title=f'{cfg.val_dataloader.dataset.data_root}, validation split')
    table.add_column('SegFormer-B0 with SAPA-G')
    table.add_column('mIoU', justify='right')
    table.add_row('untrained', f'{before:.1f}')
    table.add_row(f'after {cfg.train_cfg.max_iters} iterations', f'{after:.1f}')
    console.print(table)
    print(f'picture:    {picture}\ncheckpoint: {trained}\ntook {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
