#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time the operators beside the interpolation they replace, all in one run, contenders in turn.

Writes one JSON file and, with --plot, a picture. Ratios within a run mean something on a noisy machine; times of two
runs do not.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import sapa_mm
from sapa_mm import ops

# name: batch, channels, embed_dims, kernel_size, low-resolution size, output size
SIZES = {
    'segformer': (1, 256, 32, 5, (64, 64), (128, 128)),
    'segformer-odd': (1, 256, 32, 5, (64, 64), (127, 127)),
    'segformer-k3': (1, 256, 32, 3, (64, 64), (128, 128)),
    'segformer-k7': (1, 256, 32, 7, (64, 64), (128, 128)),
    'segformer-n2': (2, 256, 32, 5, (64, 64), (128, 128)),
    'fpn': (1, 256, 32, 5, (100, 152), (200, 304)),
    'mask2former': (1, 256, 32, 5, (80, 80), (160, 160)),
    'large': (16, 256, 32, 5, (128, 128), (256, 256)),
}
FORMATS = dict(nchw=torch.contiguous_format, channels_last=torch.channels_last)
# torch 2.13's inductor writes out of bounds in the backward of Tensor.unfold on a CPU
FORWARD_ONLY = ('reference_compiled',)
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16, float64=torch.float64)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=['segformer', 'segformer-odd', 'mask2former'])
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['float32', 'bfloat16'])
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=['nchw', 'channels_last'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--repeats', type=int, default=15, help='rounds over all contenders, after three of warm-up')
    parser.add_argument('--without', nargs='+', default=[], help='contenders to leave out')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--plot', type=Path, help='picture to write')
    return parser.parse_args()


def synchronize(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def make_contenders(batch, channels, embed_dims, kernel_size, low, high, dtype, memory_format, device):
    """Name -> (function, inputs); every function makes the same output from the same value."""

    def make(*shape):
        return torch.randn(shape).to(device, dtype).to(memory_format=memory_format)

    query, key, value = make(batch, embed_dims, *high), make(batch, embed_dims, *low), make(batch, channels, *low)
    compiled = torch.compile(ops.reference.point_affiliation)
    contenders = {
        'point_affiliation': (lambda q, k, v: ops.point_affiliation(q, k, v, kernel_size), (query, key, value)),
        'bilinear': (lambda v: F.interpolate(v, size=high, mode='bilinear'), (value,)),
        'nearest': (lambda v: F.interpolate(v, size=high, mode='nearest'), (value,)),
        'reference': (lambda q, k, v: ops.reference.point_affiliation(q, k, v, kernel_size), (query, key, value)),
        'reference_compiled': (lambda q, k, v: compiled(q, k, v, kernel_size), (query, key, value)),
    }
    if torch.device(device).type == 'cuda' and high[0] == 2 * low[0] and high[1] == 2 * low[1]:
        try:
            from mmcv.ops import carafe
        except ImportError:
            pass
        else:  # it has no CPU kernel
            kernels = make(batch, kernel_size**2, *high).softmax(1)
            contenders['mmcv_carafe'] = (lambda v, w: carafe(v, w, kernel_size, 1, 2), (value, kernels))
    return contenders, make(batch, channels, *high)


def forward(function, inputs):
    def run():
        with torch.no_grad():
            function(*inputs)

    return run


def forward_backward(function, inputs, cotangent):
    leaves = [x.detach().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def yardsticks(flops, traffic, device):
    """What the machine can do: a matrix product of as many operations, a copy of as many bytes."""
    side = max(16, round((flops / 2) ** (1 / 3)))
    a, b = torch.randn(2, side, side, device=device)
    source = torch.randn(max(1, traffic // 8), device=device)  # read once, written once
    target = torch.empty_like(source)
    return {'matmul': lambda: a @ b, 'copy': lambda: target.copy_(source)}


def measure(runs, repeats, device):
    """Seconds of every run, in turn, so that a slow spell of the machine meets them all alike.

    Each runs once untimed before: what the one before it left in caches and in the allocator is not its doing. After
    gigabytes were given back, the next one to ask for memory would be timed with the faults of all its pages.
    """
    times = {name: [] for name in runs}
    for _ in range(repeats + 3):
        for name, run in runs.items():
            run()
            synchronize(device)
            begin = time.perf_counter()
            run()
            synchronize(device)
            times[name].append(time.perf_counter() - begin)
    return {name: np.percentile(values[3:], [25, 50, 75]).tolist() for name, values in times.items()}


def as_entry(quartiles):
    """What the JSON files hold of :func:`measure`."""
    low, median, high = (seconds * 1e3 for seconds in quartiles)
    return dict(median_ms=median, quartiles_ms=[low, high])


def cuda_peak(run):
    """Bytes allocated at the peak of a run beyond those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def prepare(name, size, dtype_name, format_name, device='cpu'):
    """Forward and backward of one contender, as a function to call."""
    contenders, cotangent = make_contenders(*size, DTYPES[dtype_name], FORMATS[format_name], device)
    return forward_backward(*contenders[name], cotangent)


CPU_PEAK = """
import sys, torch
sys.path.insert(0, {tools!r})
from {module} import prepare

def resident(what):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))

torch.set_num_threads({threads})
prepare({name!r}, (1, 64, 32, 5, (8, 8), (16, 16)), *{options!r})()  # libraries and threads
run = prepare({name!r}, {size!r}, *{options!r})
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # the peak starts again from here
before = resident('VmRSS')
kept = run()
print(max(0, resident('VmHWM') - before))
"""


def cpu_peak(module, name, size, options, threads):
    """Bytes of resident memory at the peak of forward and backward beyond those before, in a process of its own.

    ``module`` is the tool whose ``prepare(name, size, *options)`` gives the run.
    """
    code = CPU_PEAK.format(
        tools=str(Path(__file__).parent), module=module, threads=threads, name=name, size=size, options=options
    )
    return int(
        subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def benchmark_case(size_name, dtype_name, format_name, args):
    size, dtype = SIZES[size_name], DTYPES[dtype_name]
    batch, channels, embed_dims, kernel_size, low, high = size
    contenders, cotangent = make_contenders(*size, dtype, FORMATS[format_name], args.device)
    contenders = {name: c for name, c in contenders.items() if name not in args.without}
    positions, cells = batch * high[0] * high[1], batch * low[0] * low[1]
    multiply_adds = positions * kernel_size**2 * (embed_dims + channels)
    traffic = (positions * (embed_dims + channels) + cells * (embed_dims + channels)) * dtype.itemsize
    output_bytes = positions * channels * dtype.itemsize
    results = {}
    # Backward makes, for every product of forward, one with each factor; scores are computed once more.
    backward_multiply_adds = 2 * multiply_adds + positions * kernel_size**2 * embed_dims
    for direction, flops in (
        ('forward', 2 * multiply_adds),
        ('forward_backward', 2 * (multiply_adds + backward_multiply_adds)),
    ):
        runs = {
            name: forward(*c) if direction == 'forward' else forward_backward(*c, cotangent)
            for name, c in contenders.items()
            if direction == 'forward' or name not in FORWARD_ONLY
        }
        runs.update(yardsticks(flops, traffic, args.device))
        quartiles = measure(runs, args.repeats, args.device)
        for name, values in quartiles.items():
            entry = results.setdefault(name, {})
            entry[direction] = as_entry(values)
            if name == 'point_affiliation':
                median = values[1]
                entry[direction].update(
                    gb_per_s=traffic / median / 1e9,
                    share_of_copy=quartiles['copy'][1] / median,
                    share_of_matmul=quartiles['matmul'][1] / median,
                    gflop=flops / 1e9,
                )
    # What forward and backward have to hold: the output and one gradient per input.
    for name, (function, inputs) in contenders.items():
        if name in FORWARD_ONLY:
            continue
        if torch.device(args.device).type == 'cuda':
            peak = cuda_peak(forward_backward(function, inputs, cotangent))
        elif Path('/proc/self/statm').exists():
            peak = cpu_peak('benchmark_ops', name, size, (dtype_name, format_name), args.threads)
        else:
            continue
        extra = max(0, peak - output_bytes - sum(x.numel() * x.element_size() for x in inputs))
        results[name]['extra_memory_of_output'] = extra / output_bytes
    return dict(size=size_name, shape=size, dtype=dtype_name, format=format_name, results=results)


def environment(args):
    def git(*command):
        result = subprocess.run(['git', *command], capture_output=True, text=True, cwd=Path(__file__).parent)
        return result.stdout.strip()

    cuda = torch.device(args.device).type == 'cuda'
    return dict(
        date=time.strftime('%Y-%m-%d'),
        commit=git('rev-parse', 'HEAD') + ('+changes' if git('status', '--porcelain', '--untracked-files=no') else ''),
        sapa_mm=sapa_mm.__version__,
        backend=ops.backend(),
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name() if cuda else processor_name(),
        threads=args.threads,
    )


def processor_name():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def show(case, console, baseline='bilinear'):
    """Print one case as a table, times also as multiples of those of ``baseline``."""
    table = Table(title=', '.join(str(case[key]) for key in ('size', 'shape', 'dtype', 'format') if key in case))
    for heading in ('', 'forward ms', 'x bilinear', 'forward+backward ms', 'x bilinear', 'extra memory / output'):
        table.add_column(heading, justify='left' if not heading else 'right')
    base = case['results'].get(baseline)
    for name, result in case['results'].items():
        row = [name]
        for direction in ('forward', 'forward_backward'):
            if direction not in result:
                row += ['', '']
                continue
            median = result[direction]['median_ms']
            row += [f'{median:.2f}', f'{median / base[direction]["median_ms"]:.2f}' if base else '']
        extra = result.get('extra_memory_of_output')
        table.add_row(*row, '' if extra is None else f'{extra:.1%}')
    console.print(table)


def plot(report, path):
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    cases = report['cases']
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(8, 1.9 * len(cases)), squeeze=False, layout='constrained')
    for axis, case in zip(axes[:, 0], cases):
        names = list(case['results'])
        for offset, direction in ((-0.2, 'forward'), (0.2, 'forward_backward')):
            there = [i for i, name in enumerate(names) if direction in case['results'][name]]
            times = [case['results'][names[i]][direction] for i in there]
            medians = [t['median_ms'] for t in times]
            spread = np.abs(np.array([t['quartiles_ms'] for t in times]).T - medians)
            axis.barh(np.array(there) + offset, medians, 0.4, xerr=spread, label=direction.replace('_', ' + '))
        axis.set(yticks=range(len(names)), yticklabels=names, xscale='log', xlabel='ms (median, quartiles)')
        axis.set_title(f'{case["size"]}, {case["dtype"]}, {case["format"]}', fontsize=9)
        axis.invert_yaxis()
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f'{report["environment"]["device"]}, {report["environment"]["threads"]} threads')
    figure.savefig(path, dpi=110)


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    report = dict(environment=environment(args), cases=[])
    for size, dtype, memory_format in itertools.product(args.sizes, args.dtypes, args.formats):
        report['cases'].append(benchmark_case(size, dtype, memory_format, args))
        show(report['cases'][-1], console)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + '\n')
        print(f'written: {args.out}')
    if args.plot:
        plot(report, args.plot)
        print(f'written: {args.plot}')


if __name__ == '__main__':
    main()
