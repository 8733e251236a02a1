#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time every published variant of every upsampler at the sizes of SegFormer and FPN, all in one run, in turn.

With --plain each stands beside itself on the operators in plain torch, which unfold windows as published code does.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import torch
from benchmark_ops import SIZES, as_entry, cpu_peak, cuda_peak, environment, forward, measure, show
from mmengine.registry import MODELS
from rich.console import Console

from sapa_mm.ops import library
from sapa_mm.upsamplers import VARIANTS

PLAIN = ', plain torch'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=['segformer', 'fpn'])
    parser.add_argument('--upsamplers', nargs='+', choices=VARIANTS, default=list(VARIANTS), metavar='NAME')
    parser.add_argument('--plain', action='store_true', help='each once more on the operators in plain torch')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--repeats', type=int, default=10, help='rounds over all upsamplers, after three of warm-up')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args()


def on_operators_of(name, run):
    """Run on the compiled operators, or as a contender in plain torch."""
    if not name.endswith(PLAIN):
        return run()
    with mock.patch.dict(library.native_devices, dict.fromkeys(library.OPERATORS, ())):
        return run()


def build(name, size, device):
    """The module, its inputs (feature and guide of the size's channels) and a gradient of its output."""
    batch, channels, _, _, low, high = size
    variant = VARIANTS[name.removesuffix(PLAIN)]
    module = MODELS.build(dict(variant, in_channels=channels, guide_channels=channels)).to(device)
    feature, guide, cotangent = (torch.randn(batch, channels, *s, device=device) for s in (low, high, high))
    return module, (feature, guide), cotangent


def prepare(name, size, device='cpu'):
    """Forward and backward of one upsampler, as a function to call."""
    module, inputs, cotangent = build(name, size, device)
    leaves = [x.requires_grad_() for x in inputs[: 1 + module.needs_guide]] + list(module.parameters())
    return lambda: on_operators_of(name, lambda: torch.autograd.grad(module(*inputs), leaves, cotangent))


def prepare_forward(name, size, device):
    """Forward of one upsampler, as a function to call."""
    module, inputs, _ = build(name, size, device)
    return lambda: on_operators_of(name, forward(module, inputs))


def benchmark(size_name, args):
    size = SIZES[size_name]
    batch, channels, _, _, low, high = size
    names = [name + form for name in args.upsamplers for form in (('', PLAIN) if args.plain else ('',))]
    forwards = {name: prepare_forward(name, size, args.device) for name in names}
    both = {name: prepare(name, size, args.device) for name in names}
    results = {name: {} for name in names}
    for direction, runs in (('forward', forwards), ('forward_backward', both)):
        for name, quartiles in measure(runs, args.repeats, args.device).items():
            results[name][direction] = as_entry(quartiles)
    output = batch * channels * high[0] * high[1] * 4
    for name in names:
        if torch.device(args.device).type == 'cuda':
            peak = cuda_peak(both[name])
        else:
            peak = cpu_peak('benchmark_upsamplers', name, size, (), args.threads)
        needs_guide = build(name, size, 'cpu')[0].needs_guide
        held = output + batch * channels * 4 * (low[0] * low[1] + needs_guide * high[0] * high[1])
        results[name]['extra_memory_of_output'] = max(0, peak - held) / output
    return dict(size=size_name, shape=size, results=results)


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    report, console = dict(environment=environment(args), cases=[]), Console()
    for size in args.sizes:
        report['cases'].append(benchmark(size, args))
        show(report['cases'][-1], console, 'Bilinear' if 'Bilinear' in args.upsamplers else args.upsamplers[0])
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + '\n')
        print(f'written: {args.out}')


if __name__ == '__main__':
    main()
