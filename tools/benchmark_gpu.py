#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time the operators on a GPU beside what they replace and what others do; needs torch and triton alone.

Every run finds an empty L2 cache (``triton.testing.do_bench``). Shares are of the bandwidth that a copy of as many
bytes reaches on the same card in the same run. Cases come in the order of their weight, and those that the time does
not reach are named. Writes one JSON file.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from sapa_mm import ops
from sapa_mm.ops import library

# name: batch, channels, embed_dims, kernel_size, low-resolution size, output size
SIZES = {
    'n16': (16, 256, 32, 5, (64, 64), (128, 128)),
    'n1': (1, 256, 32, 5, (64, 64), (128, 128)),
    'detection': (2, 256, 32, 5, (200, 336), (400, 672)),
}
SMALL_SIZES = {'n2': (2, 32, 8, 5, (8, 8), (16, 16)), 'n1': (1, 32, 8, 5, (8, 8), (16, 16))}
DTYPES = dict(float16=torch.float16, bfloat16=torch.bfloat16, float32=torch.float32)
#: Layouts of query and of key and value.
LAYOUTS = dict(
    nchw=(torch.contiguous_format, torch.contiguous_format),
    channels_last=(torch.channels_last, torch.channels_last),
    mixed=(torch.contiguous_format, torch.channels_last),
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--small', action='store_true', help='small sizes, to try the program')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--seconds', type=float, default=240, help='start no further case after so many')
    return parser.parse_args()


def measure(run, device):
    """Milliseconds: quartiles of the runs of 50 ms on a GPU, of five runs on a CPU."""
    if torch.device(device).type == 'cuda':
        from triton.testing import do_bench

        return do_bench(run, warmup=10, rep=50, quantiles=[0.25, 0.5, 0.75])
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    times = sorted(times[1:])
    return times[1:4]


def naive_point_affiliation():
    """The operator as it is usually published: a thread for each number, nothing shared, three passes over memory.

    Forward only, softmax only, integer ratio of the sizes; contiguous maps.
    """
    import triton
    import triton.language as tl

    @triton.jit
    def scores_kernel(query, key, scores, count, D, H, W, h, w, ratio, K: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < count
        x, y, tap, n = i % W, i // W % H, i // W // H % (K * K), i // W // H // (K * K)
        row, column = y // ratio + tap // K - K // 2, x // ratio + tap % K - K // 2
        there = inside & (row >= 0) & (row < h) & (column >= 0) & (column < w)
        total = tl.zeros([BLOCK], tl.float32)
        for d in range(D):
            q = tl.load(query + ((n * D + d) * H + y) * W + x, inside, 0).to(tl.float32)
            total += q * tl.load(key + ((n * D + d) * h + row) * w + column, there, 0).to(tl.float32)
        tl.store(scores + i, total, inside)

    @triton.jit
    def mix_kernel(weights, value, output, count, C, H, W, h, w, ratio, K: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < count
        x, y, c, n = i % W, i // W % H, i // W // H % C, i // W // H // C
        total = tl.zeros([BLOCK], tl.float32)
        for tap in range(K * K):
            row, column = y // ratio + tap // K - K // 2, x // ratio + tap % K - K // 2
            there = inside & (row >= 0) & (row < h) & (column >= 0) & (column < w)
            weight = tl.load(weights + ((n * K * K + tap) * H + y) * W + x, inside, 0).to(tl.float32)
            total += weight * tl.load(value + ((n * C + c) * h + row) * w + column, there, 0).to(tl.float32)
        tl.store(output + i, total.to(output.dtype.element_ty), inside)

    def run(query, key, value, kernel_size):
        (N, D, H, W), (C, h, w) = query.shape, value.shape[1:]
        scores = query.new_empty(N, kernel_size**2, H, W)
        output = query.new_empty(N, C, H, W)
        options = dict(K=kernel_size, BLOCK=256)
        sizes = (H, W, h, w, H // h)
        scores_kernel[(triton.cdiv(scores.numel(), 256),)](query, key, scores, scores.numel(), D, *sizes, **options)
        weights = scores.softmax(1)
        mix_kernel[(triton.cdiv(output.numel(), 256),)](weights, value, output, output.numel(), C, *sizes, **options)
        return output

    return run


def make_contenders(size, dtype_name, layout, device):
    """Name -> (function, inputs, whether it has a backward); every function makes an output of the same size."""
    batch, channels, embed_dims, kernel_size, low, high = size

    def make(memory_format, *shape):
        return torch.randn(shape).to(device, DTYPES[dtype_name]).to(memory_format=memory_format)

    guide_format, feature_format = LAYOUTS[layout]
    maps = query, key, value = (
        make(guide_format, batch, embed_dims, *high),
        make(feature_format, batch, embed_dims, *low),
        make(feature_format, batch, channels, *low),
    )
    cuda = torch.device(device).type == 'cuda'
    contenders = {}
    for name, first in backends('point_affiliation', query, key, kernel_size).items():
        contenders[name] = served_by(first, lambda q, k, v: ops.point_affiliation(q, k, v, kernel_size)), maps, True

    def bilinear(x):
        return F.interpolate(x, size=high, mode='bilinear')

    contenders['bilinear'] = bilinear, (value,), True
    if layout == 'nchw':
        contenders['bilinear channels_last'] = bilinear, (value.to(memory_format=torch.channels_last),), True
        if dtype_name == 'float32' or cuda and dtype_name == 'float16':  # compiling takes longer than all the rest
            contenders['bilinear compiled'] = torch.compile(bilinear, dynamic=False), (value,), True
            compiled = torch.compile(ops.reference.point_affiliation, dynamic=False)
            # on a CPU, torch 2.13's inductor writes out of bounds in the backward of Tensor.unfold
            contenders['reference compiled'] = lambda *x: compiled(*x, kernel_size), maps, cuda
        if cuda:
            naive = naive_point_affiliation()
            contenders['naive'] = lambda *x: naive(*x, kernel_size), maps, False
    carafe = mmcv_carafe() if cuda else None
    if carafe:
        kernels = make(guide_format, batch, kernel_size**2, *high).softmax(1)
        contenders['mmcv carafe'] = lambda v, w: carafe(v, w, kernel_size, 1, 2), (value, kernels), True
    return contenders, maps, make(feature_format, batch, channels, *high)


def backends(operator, *arguments):
    """Name of every backend that serves these maps -> what to ask for to get it."""
    found = {}
    for first in library.BACKENDS:
        with library.prefer(first):
            found.setdefault(ops.backend(*arguments, operator=operator), first)
    return found


def served_by(first, function):
    def run(*inputs):
        with library.prefer(first):
            return function(*inputs)

    return run


def mmcv_carafe():
    """It has no CPU kernel."""
    try:
        from mmcv.ops import carafe
    except ImportError:
        return None
    return carafe


def forward(function, inputs):
    def run():
        with torch.no_grad():
            function(*inputs)

    return run


def forward_backward(function, inputs, cotangent):
    leaves = [x.detach().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def copy_of(nbytes, device):
    """Moves so many bytes, half of them read and half written."""
    source = torch.zeros(max(1, nbytes // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def benchmark_case(size_name, size, dtype_name, layout, device):
    contenders, maps, cotangent = make_contenders(size, dtype_name, layout, device)
    read, written = sum(x.nbytes for x in maps), cotangent.nbytes
    # Backward reads the gradient and the maps and writes a gradient for each map; what forward saves is not counted.
    traffic = dict(forward=read + written, forward_backward=3 * read + 2 * written)
    results = {}
    for direction, nbytes in traffic.items():
        copy = measure(copy_of(nbytes, device), device)
        results.setdefault('copy', {})[direction] = dict(ms=copy, gb_per_s=nbytes / copy[1] / 1e6)
        for name, (function, inputs, has_backward) in contenders.items():
            if direction == 'forward_backward' and not has_backward:
                continue
            entry = results.setdefault(name, {})
            try:
                run = (
                    forward(function, inputs)
                    if direction == 'forward'
                    else forward_backward(function, inputs, cotangent)
                )
                times = measure(run, device)
            except Exception as error:  # one that fails must not cost the others
                entry[direction] = dict(error=f'{type(error).__name__}: {error}'[:500])
                continue
            entry[direction] = dict(ms=times)
            if name in ('triton', 'cuda', 'cpu'):
                entry[direction].update(gb_per_s=nbytes / times[1] / 1e6, share_of_copy=copy[1] / times[1])
    return dict(size=size_name, shape=size, dtype=dtype_name, layout=layout, results=results)


def benchmark_projection(size_name, size, dtype_name, device):
    """The norm and the projection of a guide."""
    batch, channels, embed_dims, _, _, high = size
    x = torch.randn(batch, channels, *high).to(device, DTYPES[dtype_name])
    matrix, shift = torch.randn(embed_dims, channels, device=device), torch.randn(embed_dims, device=device)
    weight, bias = matrix.to(x.dtype)[:, :, None, None], shift.to(x.dtype)

    def eager(x):
        normed = F.layer_norm(x.movedim(1, -1), (channels,)).movedim(-1, 1)
        return F.conv2d(normed, weight, bias)

    output = batch * embed_dims * high[0] * high[1] * x.element_size()
    traffic = dict(forward=x.nbytes + output, forward_backward=3 * x.nbytes + 2 * output)
    contenders = {'eager': (eager, (x,))}
    for name, first in backends('norm_projection', x).items():
        contenders[name] = served_by(first, ops.norm_projection), (x, matrix, shift)
    cotangent = torch.randn(batch, embed_dims, *high).to(x)
    results = {}
    for direction, nbytes in traffic.items():
        copy = measure(copy_of(nbytes, device), device)
        results.setdefault('copy', {})[direction] = dict(ms=copy, gb_per_s=nbytes / copy[1] / 1e6)
        for name, (function, inputs) in contenders.items():
            run = forward(function, inputs) if direction == 'forward' else forward_backward(function, inputs, cotangent)
            times = measure(run, device)
            results.setdefault(name, {})[direction] = dict(ms=times, share_of_copy=copy[1] / times[1])
    return dict(operator='norm_projection', size=size_name, dtype=dtype_name, results=results)


def main():
    args = parse_args()
    begin = time.perf_counter()
    sizes = SMALL_SIZES if args.small else SIZES
    report = dict(cases=[], left_out=[])
    if torch.device(args.device).type == 'cuda':
        copy = measure(copy_of(2**31, args.device), args.device)
        report['copy_gb_per_s'] = 2**31 / copy[1] / 1e6
    # the layout that models have and the smallest dtype first
    for layout, size_name, dtype in itertools.product(LAYOUTS, sizes, DTYPES):
        if time.perf_counter() - begin > args.seconds:
            report['left_out'].append([layout, size_name, dtype])
            continue
        report['cases'].append(benchmark_case(size_name, sizes[size_name], dtype, layout, args.device))
        if layout == 'nchw':
            report['cases'].append(benchmark_projection(size_name, sizes[size_name], dtype, args.device))
        torch.compiler.reset()
        report['seconds'] = time.perf_counter() - begin
        if args.out:  # after every case: a run that is cut off leaves what it has
            args.out.write_text(json.dumps(report, indent=1) + '\n')
    if not args.out:
        print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
