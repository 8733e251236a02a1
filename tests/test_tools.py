# SPDX-License-Identifier: Apache-2.0
"""The command-line tools, run as a user runs them, on a data set of a few pictures."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')
cv2 = pytest.importorskip('cv2')

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'

CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255, mean=[127.0] * 3, std=[60.0] * 3),
    backbone=dict(
        type='MixVisionTransformer', embed_dims=8, num_stages=4, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
        drop_path_rate=0.3),
    decode_head=dict(
        type='sapa_mm.GuidedSegformerHead', in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3], channels=8,
        dropout_ratio=0.5, num_classes=3, norm_cfg=dict(type='BN'), align_corners=False,
        upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=4)),
    test_cfg=dict(mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(48, 48), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='DATA', img_suffix='.png', metainfo=dict(classes=('a', 'b', 'c')),
    data_prefix=dict(img_path='images', seg_map_path='annotations'))
train_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40, val_interval=15)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='PolyLR', power=1.0, by_epoch=False, begin=0, end=40)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10),
    visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=False)
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A tiny mmseg config and its data: eight pictures."""
    folder = tmp_path_factory.mktemp('tools')
    rng = np.random.default_rng(0)
    for kind in ('images', 'annotations'):
        (folder / 'data' / kind).mkdir(parents=True)
    for n in range(8):
        labels = np.kron(rng.integers(0, 3, (6, 6)), np.ones((8, 8), int)).astype(np.uint8)
        image = np.clip(labels[..., None] * 80 + rng.normal(40, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / 'data' / 'images' / f'{n}.png'), image)
        cv2.imwrite(str(folder / 'data' / 'annotations' / f'{n}.png'), labels)
    path = folder / 'tiny.py'
    path.write_text(CONFIG.replace('DATA', str(folder / 'data')))
    return path


def command(tool, *args):
    return [sys.executable, str(TOOLS / tool), *map(str, args)], dict(
        env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(tool, *args, status=0):
    arguments, options = command(tool, *args)
    done = subprocess.run(arguments, timeout=300, **options)
    assert done.returncode == status, done.stdout[-3000:]
    return done.stdout


def weights(path):
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


@pytest.fixture(scope='module')
def trained(config):
    """The work dir of an uninterrupted run; it draws its own seed."""
    run('train.py', config, '--work-dir', config.parent / 'whole', '--cfg-options', 'randomness.seed=3')
    return config.parent / 'whole'


def test_resume_after_kill_is_exact(config, trained):
    """Killed in the middle, resumed: the weights of the whole run, whatever the number of workers."""
    folder = config.parent / 'killed'
    options = ['--work-dir', folder, '--cfg-options', 'randomness.seed=3', 'train_dataloader.num_workers=2']
    arguments, settings = command('train.py', config, *options)
    settings['stdout'] = subprocess.DEVNULL
    process = subprocess.Popen(arguments, **settings)
    deadline = time.monotonic() + 300
    while not (folder / 'last_checkpoint').exists():
        assert process.poll() is None and time.monotonic() < deadline, 'no checkpoint was written'
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / 'iter_40.pth').exists(), 'the run was over before it was killed'

    out = run('train.py', config, '--resume', *options)
    assert 'resumed epoch: 0, iter: ' in out
    expected, result = weights(trained / 'iter_40.pth'), weights(folder / 'iter_40.pth')
    assert expected.keys() == result.keys()
    different = [name for name in expected if not torch.equal(expected[name], result[name])]
    assert not different
    start = weights(trained / 'iter_10.pth')
    assert any(not torch.equal(start[name], result[name]) for name in result), 'nothing was trained after the resume'


@pytest.fixture
def check_checkpoint(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import _common

    return _common.check_checkpoint


def broken(good, path, kind):
    """Write a file that is no checkpoint, each kind another way to be none."""
    content = good.read_bytes()
    if kind == 'missing':
        return
    if kind == 'flipped':  # a weight of the middle, which only the checksum can tell
        middle = len(content) // 2
        content = content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 64]) + content[middle + 64 :]
    path.write_bytes(
        {'empty': b'', 'cut': content[: len(content) // 2], 'text': b'not a checkpoint'}.get(kind, content)
    )
    if kind == 'list':
        torch.save([1, 2, 3], path)


@pytest.mark.parametrize('kind', ['missing', 'empty', 'cut', 'flipped', 'text', 'list'])
def test_bad_checkpoint_is_named(kind, trained, tmp_path, check_checkpoint, capsys):
    path = tmp_path / 'bad.pth'
    broken(trained / 'iter_40.pth', path, kind)
    with pytest.raises(SystemExit) as end:
        check_checkpoint(str(path))
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.startswith('error: ') and str(path) in message and message.count('\n') == 1


def test_good_checkpoint_passes(trained, tmp_path, check_checkpoint, capsys):
    check_checkpoint(str(trained / 'iter_40.pth'), resume=True)
    torch.save(weights(trained / 'iter_40.pth'), tmp_path / 'weights.pth')
    check_checkpoint(str(tmp_path / 'weights.pth'))
    # The classic stack knows no list of mmengine's own types: a checkpoint that holds some is a foreign one there.
    listed = hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals')
    assert ('warning: ' in capsys.readouterr().err) == (not listed)
    with pytest.raises(SystemExit):
        check_checkpoint(str(tmp_path / 'weights.pth'), resume=True)
    assert 'no training state' in capsys.readouterr().err


def test_foreign_checkpoint_is_a_warning(trained, tmp_path, check_checkpoint, capsys):
    torch.save(dict(state_dict=weights(trained / 'iter_40.pth'), extra=Path('x')), tmp_path / 'foreign.pth')
    check_checkpoint(str(tmp_path / 'foreign.pth'))
    message = capsys.readouterr().err
    assert message.startswith('warning: ') and 'foreign.pth' in message


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_nothing_is_written_for_a_bad_checkpoint(tool, config, trained, tmp_path):
    bad = tmp_path / 'bad.pth'
    broken(trained / 'iter_40.pth', bad, 'cut')
    before = bad.read_bytes()
    arguments = ['--resume', bad] if tool == 'train.py' else [bad]
    out = run(tool, config, *arguments, '--work-dir', tmp_path / 'work', status=2)
    assert f'error: the checkpoint {bad}' in out and 'Traceback' not in out
    assert bad.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ['bad.pth']


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_missing_data_are_named(tool, config, trained, tmp_path):
    key = {'train.py': 'train_dataloader', 'test.py': 'test_dataloader'}[tool]
    arguments = [] if tool == 'train.py' else [trained / 'iter_40.pth']
    out = run(
        tool,
        config,
        *arguments,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'{key}.dataset.data_root=/no/such/place',
        status=2,
    )
    assert '/no/such/place' in out and 'docs/data.md' in out and 'Traceback' not in out
    assert not (tmp_path / 'work').exists()


def test_test_writes_label_maps_and_paintings(config, trained, tmp_path):
    """The options of mmseg's test.py: metrics, --out and --show-dir."""
    out = run(
        'test.py',
        config,
        trained / 'iter_40.pth',
        '--work-dir',
        tmp_path / 'work',
        '--out',
        tmp_path / 'out',
        '--show-dir',
        tmp_path / 'show',
    )
    assert 'mIoU' in out
    maps = sorted((tmp_path / 'out').glob('*.png'))
    assert len(maps) == 8 and cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED).shape == (48, 48)
    assert len(list((tmp_path / 'show').rglob('*.png'))) == 8


def test_amp_and_auto_scale_lr(config, tmp_path):
    """Both options reach the runner; the learning rate is scaled by 3 / 6."""
    out = run(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        '--amp',
        '--auto-scale-lr',
        '--cfg-options',
        'train_cfg.max_iters=2',
        'auto_scale_lr.enable=False',
        'auto_scale_lr.base_batch_size=6',
    )
    assert 'Scaling the original LR by 0.5' in out
    dumped = (tmp_path / 'tiny.py').read_text()
    assert ('AmpOptimWrapper' if torch.cuda.is_available() else 'sapa_mm.CPUAmpOptimWrapper') in dumped
    state = weights(tmp_path / 'iter_2.pth')
    assert all(torch.isfinite(w).all() for w in state.values())


def test_demo_dataset(tmp_path, monkeypatch):
    """The same seed gives the same files, another one others, and nobody's folder is overwritten."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from make_demo_dataset import is_complete, make_dataset

    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        make_dataset(tmp_path / name, seed)
        assert is_complete(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*.png'))
    assert len(files) == 720
    same = [(tmp_path / 'a' / f).read_bytes() == (tmp_path / 'b' / f).read_bytes() for f in files]
    other = [(tmp_path / 'a' / f).read_bytes() == (tmp_path / 'c' / f).read_bytes() for f in files]
    assert all(same) and not any(other)
    labels = [cv2.imread(str(tmp_path / 'a' / f), cv2.IMREAD_UNCHANGED) for f in files if f.parts[0] == 'annotations']
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4} and labels[0].shape == (128, 128)

    names = ('a', 'b', 'c')
    coco = [(tmp_path / name / 'annotations' / 'instances_training.json').read_text() for name in names]
    assert coco[0] == coco[1] != coco[2]

    make_dataset(tmp_path / 'a', 1)  # its own folder may be made again
    assert (tmp_path / 'a' / files[0]).read_bytes() == (tmp_path / 'c' / files[0]).read_bytes()
    theirs = tmp_path / 'theirs'
    theirs.mkdir()
    (theirs / 'thesis.txt').write_text('mine')
    assert 'nothing was changed' in run('make_demo_dataset.py', '--out', theirs, status=2)
    assert [p.name for p in theirs.iterdir()] == ['thesis.txt']


def test_demo_dataset_for_detection(tmp_path, monkeypatch):
    """Boxes, masks and panoptic segments say what the label maps say, in the words of COCO and of mmdet."""
    pytest.importorskip('mmdet.datasets')
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_demo_dataset
    from mmdet.registry import DATASETS
    from mmengine import DefaultScope
    from pycocotools.coco import COCO

    monkeypatch.setattr(make_demo_dataset, 'SPLITS', dict(training=6, validation=2))
    make_demo_dataset.make_dataset(tmp_path)
    coco = COCO(str(tmp_path / 'annotations' / 'instances_training.json'))
    drawn = {i: np.zeros((128, 128), int) for i in coco.imgs}
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.sum() == annotation['area'] and not drawn[annotation['image_id']][mask].any()
        left, top, width, height = annotation['bbox']
        inside = mask[top : top + height, left : left + width]
        assert inside.sum() == mask.sum()
        assert inside[[0, -1]].any(1).all() and inside[:, [0, -1]].any(0).all()  # the box is tight
        drawn[annotation['image_id']][mask] = annotation['category_id']
    for i, labels in drawn.items():
        stored = cv2.imread(str(tmp_path / 'annotations/training' / coco.imgs[i]['file_name']), cv2.IMREAD_UNCHANGED)
        assert (stored == labels).all()

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='CocoPanopticDataset',
                metainfo=dict(
                    classes=('disc', 'box', 'star', 'stripe', 'background'),
                    thing_classes=('disc', 'box', 'star', 'stripe'),
                    stuff_classes=('background',),
                ),
                data_root=str(tmp_path),
                ann_file='annotations/panoptic_training.json',
                data_prefix=dict(img='images/training/', seg='panoptic/training/'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='sapa_mm.LoadPanopticAnnotations')],
            )
        )
    assert len(dataset) == 6
    for item in dataset:
        labels = drawn[item['img_id']]
        assert (item['gt_seg_map'] == np.where(labels, labels - 1, 4)).all()
        assert len(item['gt_masks']) == len(item['gt_bboxes']) == len(item['gt_bboxes_labels']) >= 3
        for mask, label in zip(item['gt_masks'].masks, item['gt_bboxes_labels']):
            assert (labels[mask.astype(bool)] == label + 1).all()


def test_sunrgbd_converter(tmp_path):
    """Labels of the test images come first; each gets its image's name, and the data set finds the pairs."""
    from mmengine.registry import DATASETS

    for folder, suffix, count in (('train', 'jpg', 3), ('test', 'jpg', 2), ('labels', 'png', 5)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            value = 37 - i if folder == 'labels' else 0
            picture = np.full((4, 6) if suffix == 'png' else (4, 6, 3), value, np.uint8)
            cv2.imwrite(str(tmp_path / folder / f'img-{i + 1:06d}.{suffix}'), picture)
    folders = [tmp_path / name for name in ('train', 'test', 'labels')]
    run('dataset_converters/sunrgbd.py', *folders, tmp_path / 'out')
    for split, first, count in (('test', 37, 2), ('train', 35, 3)):
        dataset = DATASETS.build(
            dict(
                type='sapa_mm.SUNRGBDDataset',
                data_root=str(tmp_path / 'out'),
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                pipeline=[
                    dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations', reduce_zero_label=True)
                ],
            )
        )  # fmt: skip
        assert len(dataset) == count and len(dataset.metainfo['classes']) == 37
        assert [np.unique(item['gt_seg_map']).tolist() for item in dataset] == [[first - 1 - i] for i in range(count)]
    (tmp_path / 'labels' / 'img-000005.png').unlink()
    assert '4 labels do not fit 2 test and 3 training images' in run(
        'dataset_converters/sunrgbd.py', *folders, tmp_path / 'other', status=1
    )


def test_demo(tmp_path):
    """All steps of the demo, with a training too short to learn anything."""
    arguments, settings = command('demo.py', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=9')
    done = subprocess.run(arguments, cwd=tmp_path, timeout=300, **settings)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'untrained' in done.stdout and 'after 2 iterations' in done.stdout
    picture = cv2.imread(str(tmp_path / 'work_dirs' / 'demo' / 'demo.png'))
    assert picture.shape[0] > 300 and picture.std() > 20
