#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time the neighbourhood attention of NAF beside a straightforward one in torch, over window sizes, in one run.

The straightforward one gathers the window of every position: K * K times the memory of its maps.
"""

import argparse
import json
from pathlib import Path

import torch
from benchmark_ops import as_entry, cpu_peak, cuda_peak, environment, forward, measure
from rich.console import Console
from rich.table import Table

from sapa_mm.upsamplers.image_guided import attend

CONTENDERS = ('sapa_mm', 'straightforward')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kernel-sizes', nargs='+', type=int, default=[3, 5, 7, 9])
    parser.add_argument('--dim', type=int, default=256, help='channels of queries and keys')
    parser.add_argument('--channels', type=int, default=384, help='channels of the feature: those of a ViT-S')
    parser.add_argument('--heads', type=int, default=4)
    parser.add_argument('--cells', type=int, default=32, help='side of the feature')
    parser.add_argument('--ratio', type=int, default=4)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--repeats', type=int, default=3, help='rounds over all contenders, after three of warm-up')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args()


def straightforward(query, key, value, heads, kernel_size, scale):
    rows, columns = (
        (torch.arange(size, device=key.device) * cells // size - kernel_size // 2).clamp(0, cells - kernel_size)[
            :, None
        ]
        + torch.arange(kernel_size, device=key.device)
        for size, cells in zip(query.shape[2:], key.shape[2:])
    )

    def windows(x):
        x = x[:, :, rows][:, :, :, :, columns]  # (N, C, H, K, W, K)
        return x.permute(0, 1, 3, 5, 2, 4).flatten(2, 3).unflatten(1, (heads, -1))

    scores = torch.einsum('ngdhw,ngdkhw->ngkhw', (query * scale).unflatten(1, (heads, -1)), windows(key))
    return torch.einsum('ngkhw,ngckhw->ngchw', scores.softmax(2), windows(value)).flatten(1, 2)


def prepare(name, size, device='cpu'):
    """Forward of one contender, as a function to call; sizes that benchmark_ops warms up with stand for small ones."""
    dim, channels, heads, cells, side, kernel_size = size if isinstance(size[4], int) else (16, 16, 4, 8, 16, 3)
    query, key, value = (
        torch.randn(1, c, s, s, device=device) for c, s in ((dim, side), (dim, cells), (channels, cells))
    )
    function = attend if name == 'sapa_mm' else straightforward
    scale = (dim // heads) ** -0.5
    return forward(lambda *maps: function(*maps, heads, kernel_size, scale), (query, key, value))


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    report = dict(environment=environment(args), cases=[])
    table = Table('K', *(f'{name} {what}' for name in CONTENDERS for what in ('ms', 'MiB')), 'times faster')
    for kernel_size in args.kernel_sizes:
        size = (args.dim, args.channels, args.heads, args.cells, args.cells * args.ratio, kernel_size)
        runs = {name: prepare(name, size, args.device) for name in CONTENDERS}
        results = {name: as_entry(times) for name, times in measure(runs, args.repeats, args.device).items()}
        for name in CONTENDERS:
            on_gpu = torch.device(args.device).type == 'cuda'
            peak = cuda_peak(runs[name]) if on_gpu else cpu_peak('benchmark_attention', name, size, (), args.threads)
            results[name]['peak_bytes'] = peak
        report['cases'].append(dict(kernel_size=kernel_size, size=size, results=results))
        numbers = [f'{results[n][k] / u:.1f}' for n in CONTENDERS for k, u in (('median_ms', 1), ('peak_bytes', 2**20))]
        ratio = results['straightforward']['median_ms'] / results['sapa_mm']['median_ms']
        table.add_row(str(kernel_size), *numbers, f'{ratio:.1f}')
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + '\n')
        print(f'written: {args.out}')


if __name__ == '__main__':
    main()
