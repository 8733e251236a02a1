#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates (MACs) of a config, module by module.

One forward pass of one image on a CPU, with random weights, under torch's FlopCounterMode: it sees what is computed,
in whatever module or function, so models whose heads cannot be traced are no exception. One MAC is one multiplication
and its addition; where a paper's "FLOPs" count both, they are twice as many.

Counted are convolutions, matrix products, attention, the operators of sapa_mm, and 4 MACs for each bilinearly sampled
value. Everything else that ran is named: normalisation, activations, interpolation and other element-wise work.

mmseg models predict; mmdet models run up to their heads, two-stage ones with as many proposals as the config allows.
"""

import argparse
import json
import sys
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from math import prod

from _common import fail, read_config, register_toolbox  # before torch: sets how its threads wait

# isort: split
import torch
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

import sapa_mm.ops  # noqa: F401  # its formulas

aten = torch.ops.aten
#: Operators that torch has a formula for; torch 2.1 calls the table by another name.
COUNTED_BY_TORCH = getattr(flop_counter, 'flop_registry', None) or flop_counter.flop_mapping
#: Make or move numbers without arithmetic; views need no entry.
MOVES = (
    '_to_copy arange cat clone constant_pad_nd contiguous copy_ empty eye fill fill_ full full_like gather index '
    'index_put_ index_select item linspace lift_fresh masked_fill masked_fill_ new_empty new_full new_ones new_zeros '
    'nonzero ones ones_like pixel_shuffle pixel_unshuffle rand randint randn repeat roll scatter stack tril triu where '
    'zero_ zeros zeros_like _local_scalar_dense empty_like empty_strided new_empty_strided _unsafe_view bernoulli '
    'split_with_sizes_copy tile meshgrid scalar_tensor channel_shuffle flip _reshape_alias resolve_conj _pin_memory '
    'scatter_ index_copy pad replication_pad2d reflection_pad2d'
).split()


def grid_sampler_flops(x_shape, grid_shape, interpolation, *args, out_shape=None, **kwargs) -> int:
    """Taps of each sample: 4 for bilinear, 16 for bicubic interpolation; the nearest value costs nothing."""
    return 2 * {0: 4, 1: 0, 2: 16}[interpolation] * prod(out_shape)


FORMULAS = {
    aten.grid_sampler_2d: grid_sampler_flops,
    aten._grid_sampler_2d_cpu_fallback: grid_sampler_flops,
}


@dataclass
class Cost:
    """What :func:`count` found."""

    macs: int = 0
    #: Name of a module -> MACs while it ran, its children included.
    modules: Counter = field(default_factory=Counter)
    #: Operator without a formula -> number of calls.
    not_counted: Counter = field(default_factory=Counter)


class _Calls(TorchDispatchMode):
    """Counts the calls of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.calls[function._overloadpacket] += 1
        return function(*args, **(kwargs or {}))


def count(model: torch.nn.Module, run) -> Cost:
    """Call ``run`` and count the MACs of all that happens in it, and of each module of ``model``.

    Args:
        model: Counted in its present mode. Its ``forward`` methods are wrapped for good: throw it away afterwards.
        run: Called without arguments; uses ``model``.
    """
    cost = Cost()
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=FORMULAS)

    def watch(name, module):
        forward = module.forward

        def watched(*args, **kwargs):
            before = counter.get_total_flops()
            result = forward(*args, **kwargs)
            cost.modules[name] += (counter.get_total_flops() - before) // 2
            # mmcv's compiled operators do not pass through the dispatcher
            if type(module).__module__.startswith('mmcv.ops.') and not any(module.children()):
                cost.not_counted[f'mmcv::{type(module).__name__}'] += 1
            return result

        # `forward` and not hooks: heads are called by `head.forward(x)` as well as by `head(x)`
        module.forward = watched

    for name, module in model.named_modules():
        watch(name, module)
    # the fused kernels of attention on a CPU have no formula, the plain ones consist of products
    with torch.no_grad(), _plain_attention(), counter, _Calls() as seen:
        run()
    cost.macs = counter.get_total_flops() // 2
    for name, module in reversed(list(model.named_modules())):
        if name not in cost.modules:  # a list of modules, which never runs itself
            cost.modules[name] = sum(
                cost.modules[f'{name}.{child}'.lstrip('.')] for child, _ in module.named_children()
            )
    for operator, calls in seen.calls.items():
        name = operator.__name__
        if operator not in COUNTED_BY_TORCH and operator not in FORMULAS and name not in MOVES:
            cost.not_counted[str(operator).replace('.', '::')] += calls
    return cost


@contextmanager
def _plain_attention():
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before torch 2.3
        plain = torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    else:
        plain = sdpa_kernel(SDPBackend.MATH)
    if hasattr(torch.backends, 'mha'):
        read, write = torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
        off = False
    else:  # torch 2.1 leaves it under autocast; the flag is that of CUDA and does nothing else here
        read, write, off = torch.is_autocast_enabled, torch.set_autocast_enabled, True
    before = read()
    write(off)
    try:
        with plain:
            yield
    finally:
        write(before)


def build_model(cfg) -> torch.nn.Module:
    """The config's model with random weights, in evaluation mode. Reads no checkpoint."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        return MODELS.build(cfg.model).eval()


def default_shape(cfg):
    """Height and width that the config trains at, or else resizes test images to; None if it says neither."""
    size = (cfg.model.get('data_preprocessor') or {}).get('size')
    if size is not None:
        return tuple(size)
    for step in cfg.get('train_pipeline') or []:
        if step['type'] == 'sapa_mm.CropAroundUnknown':
            return step['size'], step['size']
    for step in cfg.get('test_pipeline') or []:
        if step['type'].endswith('Resize') and 'scale' in step:
            width, height = step['scale']
            return height, width
    return None


def count_config(cfg, model, shape) -> tuple[Cost, tuple[int, int]]:
    """Count one image of ``shape``; returns the size too that the config's preprocessing pads it to."""
    height, width = shape
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample as DataSample
    elif cfg.default_scope == 'mmengine':
        from sapa_mm.matting import MattingSample as DataSample
    else:
        from mmseg.structures import SegDataSample as DataSample
    meta = dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0), img_path=''
    )
    sample = DataSample(metainfo=meta)
    if cfg.default_scope == 'mmengine':
        sample.trimap = torch.full((height, width), 128, dtype=torch.uint8)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
        mode = 'predict'
        if cfg.default_scope == 'mmdet':
            mode = 'tensor'
            if getattr(model, 'with_rpn', False):
                _fix_proposals(model, shape)
        cost = count(model, lambda: model(**data, mode=mode))
    return cost, tuple(data['inputs'].shape[2:])


def _fix_proposals(model, shape) -> None:
    """As many proposals as the config allows: what random weights would propose is a matter of chance."""
    from mmengine.structures import InstanceData

    number = model.test_cfg.rpn.max_per_img
    boxes = torch.tensor([[0.0, 0.0, shape[1], shape[0]]]).repeat(number, 1)
    proposals = InstanceData(bboxes=boxes, scores=torch.ones(number), labels=torch.zeros(number, dtype=torch.long))
    model.rpn_head.predict_by_feat = lambda *args, **kwargs: [proposals]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of an mmseg or mmdet model')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='size of the image (default: what the config trains at)'
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object: macs, params, modules, not_counted')
    parser.add_argument('--depth', type=int, default=2, help='levels of modules in the table (default: 2)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    args = parser.parse_args()
    if args.shape is not None and min(args.shape) < 1:
        parser.error(f'--shape must be positive, got {args.shape}')
    if args.depth < 0:
        parser.error(f'--depth must not be negative, got {args.depth}')
    return args


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def print_table(report, depth) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column('module', overflow='fold')
    table.add_column('parameters', justify='right')
    table.add_column('MACs', justify='right')
    for name, costs in report['modules'].items():
        level = name.count('.') + 1
        if level <= depth:
            label = '  ' * level + name.rpartition('.')[2]
            table.add_row(label, f'{costs["params"] / 1e6:.3f} M', f'{costs["macs"] / 1e9:.3f} G')
    table.add_section()
    table.add_row('whole model', f'{report["params"] / 1e6:.3f} M', f'{report["macs"] / 1e9:.3f} G')
    print(f'{report["config"]}, image of {report["shape"][0]}x{report["shape"][1]}')
    Console().print(table)
    print(f'MACs count a multiplication and its addition as one: {report["macs"] / 1e9:.2f} GMAC')
    print(f'counted as two (FLOPs = 2 x MACs): {2 * report["macs"] / 1e9:.2f} GFLOP')
    names = ', '.join(f'{name} x{calls}' for name, calls in report['not_counted'].items())
    print(f'not counted: {names or "nothing"}')


def main():
    args = parse_args()
    # what the toolboxes print on the way is no part of the result
    with redirect_stdout(sys.stderr):
        cfg = read_config(args.config, args.cfg_options)
        shape = tuple(args.shape) if args.shape else default_shape(cfg)
        if shape is None:
            fail(f'{args.config} names no size: give --shape H W')
        register_toolbox(cfg)
        model = build_model(cfg)
        cost, padded = count_config(cfg, model, shape)
    report = dict(
        config=args.config,
        shape=padded,
        macs=cost.macs,
        params=parameters(model),
        modules={
            name: dict(macs=cost.modules[name], params=parameters(module))
            for name, module in model.named_modules()
            if name and (cost.modules[name] or parameters(module))
        },
        not_counted=dict(cost.not_counted.most_common()),
    )
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print_table(report, args.depth)


if __name__ == '__main__':
    main()
