#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Export a model to ONNX, for images of any height and width, and hold onnxruntime against torch.

python tools/export_onnx.py CONFIG [CHECKPOINT] --out model.onnx
python tools/export_onnx.py --upsampler SAPA-G --out sapa-g.onnx

What the file computes, from a normalised image (N, 3, H, W) with the N of --shape:

    mmseg   logits, (N, classes, H, W): of the decode head, interpolated to the image's size as mmseg does before its
            argmax; with --head-size as the head gives them
    mmdet   the maps of backbone and neck, finest first; proposals, boxes and masks are left to the program around
    --upsampler   the upsampled feature, from a feature (N, C, h, w) and a guide (N, C, H, W), all four sizes free

The operators of this package are exported in their plain form, so the file needs nothing of it. After the export both
run three images, odd sizes among them: the tool says the largest difference and both times, and keeps no file that
differs by more than 1e-4 of the largest value.
"""

import argparse
import inspect
import os
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from _common import check_checkpoint, fail, read_config, register_toolbox  # before torch: sets how its threads wait

# isort: split
import torch
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from sapa_mm.ops.sizes import CAN_KEEP_SIZES_OPEN
from sapa_mm.upsamplers import VARIANTS

OPSET = 20
#: Largest difference that passes, of the largest value.
TOLERANCE = 1e-4
#: Runs of each, in turn, whose median is told.
REPEATS = 5


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file of an mmseg or mmdet model')
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint (default: random weights)')
    parser.add_argument('--upsampler', metavar='NAME', help=f'an upsampler alone: {", ".join(VARIANTS)}')
    parser.add_argument('--channels', type=int, default=64, help='of its feature and guide (default: 64)')
    parser.add_argument('--out', type=Path, required=True, help='ONNX file to write')
    parser.add_argument('--shape', type=int, nargs=3, default=(1, 128, 160), metavar=('N', 'H', 'W'),
                        help='batch size, which the file keeps, and the size traced (default: 1 128 160)')  # fmt: skip
    parser.add_argument('--head-size', action='store_true', help='logits at the size that the decode head gives')
    parser.add_argument('--trust', action='store_true', help='read a checkpoint even if reading it can run code')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    args = parser.parse_args()
    if (args.config is None) == (args.upsampler is None):
        parser.error('give either a CONFIG or --upsampler NAME')
    if args.upsampler is not None and args.upsampler not in VARIANTS:
        parser.error(f'there is no upsampler {args.upsampler!r}; there are {", ".join(VARIANTS)}')
    if min(*args.shape, args.channels) < 1 or min(args.shape[1:]) < 32:
        parser.error(f'--shape needs a batch of at least 1 and sides of at least 32, got {args.shape}')
    return args


class Segmentor(nn.Module):
    """Image to logits of an mmseg model."""

    def __init__(self, model: nn.Module, head_size: bool = False) -> None:
        super().__init__()
        self.model = model
        self.head_size = head_size

    def forward(self, image):
        logits = self.model.decode_head(self.model.extract_feat(image))
        if self.head_size:
            return logits
        return F.interpolate(logits, image.shape[2:], mode='bilinear', align_corners=self.model.align_corners)


class Pyramid(nn.Module):
    """Image to the maps of an mmdet model's backbone and neck."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image):
        return tuple(self.model.extract_feat(image))


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` by two products of matrices; ONNX has none for sizes that are open."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size = pool.output_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x):
        rows, columns = (self.means(have, want, x) for have, want in zip(x.shape[2:], self.size))
        return rows @ x @ columns.T

    @staticmethod
    def means(have, want, like):
        """``(want, have)``: each row the mean over ``floor(i have / want)`` to ``ceil((i + 1) have / want) - 1``."""
        i = torch.arange(want, device=like.device)[:, None]
        first, end = i * have // want, ((i + 1) * have + want - 1) // want
        position = torch.arange(have, device=like.device)
        return ((position >= first) & (position < end)).to(like.dtype) / (end - first).to(like.dtype)


@contextmanager
def exportable(model):
    """``model`` without the layers that ONNX has not, within the block."""
    replaced = []
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and None not in (child.output_size, *AdaptivePool(child).size):
                replaced.append((parent, name, child))
    for parent, name, child in replaced:
        setattr(parent, name, AdaptivePool(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def export(model, inputs, names, path):
    """Write ``model`` as ONNX, for any height and width of its inputs.

    Args:
        model (nn.Module): In evaluation mode. Takes the inputs in order, gives a tensor or a tuple of them.
        inputs (tuple[Tensor, ...]): Examples, ``(N, C, H, W)``.
        names (tuple[str, ...]): Of the inputs.
        path (Path): File to write, weights inside.
    """
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with exportable(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # on names of axes, and types that torch's own code uses
        outputs = model(*inputs)
        count = len(outputs) if isinstance(outputs, tuple) else 1
        program = torch.onnx.export(
            model,
            tuple(inputs),
            input_names=list(names),
            output_names=[f'level{i}' for i in range(count)] if count > 1 else ['output'],
            dynamic_shapes=tuple(sizes for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    program.save(path, external_data=False)


class Onnx:
    """Runs an ONNX file on a CPU, with as many threads as torch has."""

    def __init__(self, path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])

    def __call__(self, *inputs):
        names = (x.name for x in self.session.get_inputs())
        outputs = self.session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})
        return tuple(map(torch.from_numpy, outputs))


def compare(model, onnx, inputs, repeats=REPEATS):
    """Difference of the outputs, of the largest value, and the median times of torch and onnxruntime in seconds."""
    with torch.inference_mode():
        expected = model(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = onnx(*inputs)
        difference = 0.0
        for a, b in zip(found, expected, strict=True):
            if a.shape != b.shape:
                raise ValueError(f'onnxruntime gives a map of {tuple(a.shape)}, torch one of {tuple(b.shape)}')
            difference = max(difference, ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item())
        times = ([], [])
        for _ in range(repeats):
            for run, seconds in zip((model, onnx), times):
                begin = time.perf_counter()
                run(*inputs)
                seconds.append(time.perf_counter() - begin)
    return difference, *(sorted(seconds)[len(seconds) // 2] if seconds else float('nan') for seconds in times)


def build(args):
    """The module to export, and its inputs by name for a height and width."""
    torch.manual_seed(0)
    batch = args.shape[0]
    if args.upsampler is not None:
        model = MODELS.build(dict(VARIANTS[args.upsampler], in_channels=args.channels)).eval()

        def inputs(height, width):
            feature = torch.randn(batch, args.channels, -(-height // 2), -(-width // 2))
            return dict(feature=feature, guide=torch.randn(batch, args.channels, height, width))

        return model, inputs
    cfg = read_config(args.config, args.cfg_options)
    if cfg.default_scope not in ('mmseg', 'mmdet'):
        fail(f'{args.config}: models of {cfg.default_scope} cannot be exported, only those of mmseg and mmdet')
    if args.checkpoint is not None:
        check_checkpoint(args.checkpoint, trust=args.trust)
    register_toolbox(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        from mmengine.model import revert_sync_batchnorm

        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    if args.checkpoint is None:
        print('no checkpoint given: THE WEIGHTS ARE RANDOM, good for sizes and times, not for predictions')
    else:
        from mmengine.runner import load_checkpoint

        load_checkpoint(model, args.checkpoint, map_location='cpu', strict=True)
    if cfg.default_scope == 'mmdet':
        wrapped = Pyramid(model)
    else:
        head = getattr(model, 'decode_head', None)
        if not hasattr(head, 'forward') or isinstance(head, nn.ModuleList):
            fail(f'{type(model).__name__} of {args.config} cannot be exported: it has no single decode head')
        needed = [p for p in inspect.signature(head.forward).parameters.values() if p.default is p.empty]
        if len(needed) != 1:
            fail(f'{type(head).__name__} of {args.config} cannot be exported: it takes more than the maps of the image')
        wrapped = Segmentor(model, args.head_size)
    return wrapped.eval(), lambda height, width: dict(image=torch.randn(batch, 3, height, width))


def check_requirements():
    if not CAN_KEEP_SIZES_OPEN:
        fail(f'exporting with sizes left open needs torch 2.8 or newer, this is {torch.__version__}')
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            __import__(name)
        except ImportError as error:
            fail(f'{error}; pip install -r requirements/onnx.txt')


def main():
    args = parse_args()
    check_requirements()
    folder = args.out.resolve().parent
    if args.out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        fail(f'{args.out} cannot be written: {"it is" if args.out.is_dir() else f"{folder} is no"} folder to write to')
    model, inputs = build(args)
    _, height, width = args.shape
    example = inputs(height, width)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, args.out.name)
        try:
            export(model, tuple(example.values()), tuple(example), path)
        except Exception as error:  # of any of torch's layers
            what = args.upsampler or type(getattr(model, 'model', model)).__name__
            reason = str(error.__cause__ or error).strip().splitlines() or ['no reason given']
            fail(f'{what} cannot be exported ({type(error).__name__}: {reason[0]})')
        onnx = Onnx(path)
        table = Table('image', 'difference', 'torch (ms)', 'onnxruntime (ms)')
        worst = 0.0
        for size in ((height, width), (height + 33, width - 31), (height - 1, width + 65)):
            difference, torch_seconds, onnx_seconds = compare(model, onnx, tuple(inputs(*size).values()))
            worst = max(worst, difference)
            table.add_row(
                f'{size[0]} x {size[1]}',
                f'{difference:.1e}',
                f'{torch_seconds * 1e3:.1f}',
                f'{onnx_seconds * 1e3:.1f}',
            )
        Console().print(table)
        if not worst <= TOLERANCE:
            fail(f'{args.out} was not written: onnxruntime differs from torch by {worst:.1e} of the largest value')
        size = path.stat().st_size / 2**20
        path.replace(args.out)
    print(f'largest difference: {worst:.1e} of the largest value')
    print(f'written: {args.out} ({size:.1f} MB, opset {OPSET}), batch {args.shape[0]}, any height and width')


if __name__ == '__main__':
    main()
