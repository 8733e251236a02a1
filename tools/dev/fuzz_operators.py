#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Call the operators, public and raw, forward and backward, with random and often wrong arguments.

A call may compute or refuse, with an error that torch knows. It may not end the process, break an assertion inside, or
say nothing where memory is wrong: run it on the library of `make test-sanitized`, which `make fuzz` does, for every
instruction set. A right call of a public function is also held against the reference.

    tools/dev/fuzz_operators.py --examples 7000                   each instruction set that this processor has
    tools/dev/fuzz_operators.py --only default --first 1234 --examples 1     one example again
"""

import argparse
import os
import random
import subprocess
import sys
import time
from functools import partial

LEVELS = ('default', 'avx2', 'avx512')  # of ATEN_CPU_CAPABILITY
REFUSALS = ('ValueError', 'TypeError', 'NotImplementedError', 'RuntimeError', 'IndexError')
BROKEN = ('INTERNAL ASSERT', 'AddressSanitizer', 'should not be reached')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--examples', type=int, default=7000, help='per instruction set')
    parser.add_argument('--first', type=int, default=0, help='number of the first example, which is its seed')
    parser.add_argument('--only', choices=LEVELS, help='one instruction set')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


# What is done to a tensor to make it wrong, or at least strange, along one of its dimensions.
SPOILS = (
    lambda x, dim: x.narrow(dim, 0, x.shape[dim] // 2),
    lambda x, dim: x.narrow(dim, 0, 0),
    lambda x, dim: x.repeat_interleave(2, dim),
    lambda x, dim: x.flatten(),
    lambda x, dim: x[None],
    lambda x, dim: x.select(dim, 0) if x.shape[dim] else x,
    lambda x, dim: x.new_zeros((0,)),
    lambda x, dim: x.float() if x.element_size() != 4 else x.double(),
    lambda x, dim: x.nan_to_num().long(),
    lambda x, dim: x.to('meta'),
    lambda x, dim: x.to_sparse(),
)

# ---- in the process that may die


def random_map(rng, shape, dtype, wild):
    """A map of one of the layouts and contents that callers have."""
    import torch

    n, c, h, w = shape
    x = torch.randn(n, c, h, w, dtype=torch.float64).to(dtype)
    layout = rng.choice(['contiguous', 'channels_last', 'slice', 'expanded', 'transposed'])
    if layout == 'channels_last':
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == 'slice':
        x = torch.cat([x, x, x], 1).contiguous(memory_format=rng.choice([torch.contiguous_format, torch.channels_last]))
        x = x[:, c : 2 * c]
    elif layout == 'expanded' and n > 0:
        x = x[:1].expand(n, c, h, w)
    elif layout == 'transposed':
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    if wild and x.numel() and rng.random() < 0.2:
        x = x.clone()
        x[rng.randrange(n), rng.randrange(c), rng.randrange(h), rng.randrange(w)] = rng.choice(
            [float('nan'), float('inf'), -float('inf'), 1e30]
        )
    return x


def draw(rng):
    """(name, tensors, options) of a right call of a public function; ``options`` are those of the raw operator."""
    import torch

    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
    side = lambda most: rng.choice([0, 1, 1, 2, 3]) if rng.random() < 0.1 else rng.randint(1, most)  # noqa: E731
    n, low, high = rng.choice([0, 1, 1, 2]), (side(9), side(40)), (side(19), side(45))
    if 0 in low:
        high = (0, high[1])
    groups, per_group = rng.randint(1, 3), rng.choice([1, 2, 5, 16, 33])
    channels, size = groups * per_group, (rng.choice([1, 3, 5, 7, 9, 15]))
    name = rng.choice(
        ['point_affiliation', 'feature_assembly', 'deformable_scores', 'deformable_assembly', 'channel_norm',
         'norm_projection']
    )  # fmt: skip
    maps = lambda *shapes: [random_map(rng, (n, c, *s), dtype, wild=True) for c, s in shapes]  # noqa: E731
    points = rng.randint(1, 5)
    if name == 'point_affiliation':
        d = rng.choice([1, 3, 8, 17])
        return name, maps((d, high), (d, low), (channels, low)), [size, rng.randrange(4), 0]
    if name == 'feature_assembly':
        return name, maps((channels, low), (groups * size**2, high)), [size, groups, 0]
    if name == 'deformable_scores':
        return name, maps((channels, high), (channels, low), (groups * points * 2, high)), [groups]
    if name == 'deformable_assembly':
        feature, kernels, offset = maps((channels, low), (groups * points, high), (groups * points * 2, high))
        kernels = kernels.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return name, [feature, kernels, offset], [groups]
    (x,) = maps((channels, high))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if name == 'channel_norm':
        kept = lambda: torch.randn(channels, dtype=dtype) if rng.random() < 0.8 else None  # noqa: E731
        return name, [x, kept(), kept()], [1e-5]
    rows = rng.choice([1, 4, 16, 33])
    return name, [x, torch.randn(rows, channels, dtype=wide), torch.randn(rows, dtype=wide)], [1e-5]


def spoil(rng, tensors, options):
    """Make one or two of the arguments wrong, or at least strange."""
    import torch

    tensors, options = list(tensors), list(options)
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(tensors) + len(options))
        if i >= len(tensors):
            wrong = [-1, 0, 1, 2, 4, 17, 2**31, -(2**40)]
            options[i - len(tensors)] = rng.choice(wrong)
            continue
        x = tensors[i]
        if not isinstance(x, torch.Tensor):
            tensors[i] = torch.randn(rng.randint(0, 5))
            continue
        if x.dim() == 0:
            continue
        tensors[i] = rng.choice(SPOILS)(x, rng.randrange(x.dim()))
    return tensors, options


def run_example(number):
    """What became of it: 'computed', or the name of the refusal."""
    import torch

    from sapa_mm import ops
    from sapa_mm.ops import reference
    from sapa_mm.ops.borders import BORDERS
    from sapa_mm.ops.checks import NORMALIZATIONS

    rng = random.Random(number)
    torch.manual_seed(number)
    name, tensors, options = draw(rng)
    kind = rng.choice(['public', 'public backward', 'raw', 'raw backward', 'spoiled', 'spoiled', 'spoiled backward'])
    try:
        if kind.startswith('public'):
            if name == 'point_affiliation':
                options = [options[0], NORMALIZATIONS[options[1]], rng.choice(BORDERS)]
            elif name == 'feature_assembly':
                options = [*options[:2], rng.choice(BORDERS)]
            leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
            output = getattr(ops, name)(*leaves, *options)
            if kind == 'public backward':
                output.sum().backward()
            if all(x is None or x.numel() == 0 or x.abs().max() < 1e4 for x in tensors):  # NaN is not
                wide = [None if x is None else x.double() for x in tensors]
                expected = getattr(reference, name)(*wide, *options)
                if expected.isfinite().all() and expected.numel():
                    error = (output.detach().double() - expected).abs().max()
                    scale = expected.abs().max().clamp(min=1)
                    bound = {torch.float64: 1e-10, torch.float32: 1e-3}.get(tensors[0].dtype, 0.1)
                    if not error <= bound * scale:
                        raise AssertionError(f'{name}{tuple(options)}: off by {error:.1e} of {scale:.1e}')
            return 'computed'
        raw = getattr(torch.ops.sapa_mm, name)
        with torch.no_grad():
            if kind == 'raw' or kind == 'spoiled':
                if kind == 'spoiled':
                    tensors, options = spoil(rng, tensors, options)
                raw(*tensors, *options)
                return 'computed'
            outputs = raw(*tensors, *options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            arguments = [torch.randn_like(outputs[0]), *tensors, *outputs[1:]]
            needs_grad = [rng.random() < 0.7 for _ in tensors]
            if kind == 'spoiled backward':
                arguments, options = spoil(rng, arguments, options)
            getattr(torch.ops.sapa_mm, f'_{name}_backward')(*arguments, *options, needs_grad)
        return 'computed'
    except Exception as error:
        what = type(error).__name__
        if what not in REFUSALS or any(word in str(error) for word in BROKEN):
            raise
        return what


def work(args):
    """One line per example: its number before, what became of it after."""
    import torch

    from sapa_mm import ops

    torch.set_num_threads(2)
    assert ops.backend() == 'native', 'the compiled operators are not there'
    print('level', torch.ops.sapa_mm.cpu_capability(), flush=True)
    for number in range(args.first, args.first + args.examples):
        print('begin', number, flush=True)
        try:
            print('end', run_example(number), flush=True)
        except Exception as error:
            print('end', 'broken', f'{type(error).__name__}: {error}'.replace('\n', ' ')[:300], flush=True)


# ---- in the process that counts


def run_level(level, first, examples, progress):
    """Counts by outcome, and what was wrong: (number, what)."""
    counts, wrong, number, last, name = {}, [], first, first + examples, level
    while number < last:
        command = [sys.executable, __file__, '--worker', '--first', str(number), '--examples', str(last - number)]
        env = {**os.environ, 'ATEN_CPU_CAPABILITY': level}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in process.stdout:
            kind, *rest = line.split(maxsplit=2)
            if kind == 'level':
                name = rest[0]
            elif kind == 'begin':
                number = int(rest[0])
            elif kind == 'end':
                counts[rest[0]] = counts.get(rest[0], 0) + 1
                if rest[0] == 'broken':
                    wrong.append((number, rest[1].strip()))
                number += 1
                progress()
        errors = process.stderr.read()
        process.wait()
        if number < last:
            counts['death'] = counts.get('death', 0) + 1
            wrong.append((number, f'exit {process.returncode}: {errors.strip()[-300:]}'))
            number += 1
            progress()
    return name, counts, wrong


def main():
    args = parse_args()
    if args.worker:
        return work(args)
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    console, failures = Console(), []
    table = Table('instruction set', 'examples', 'computed', 'refused', 'broken', 'deaths', 'seconds')
    for level in [args.only] if args.only else LEVELS:
        begin = time.perf_counter()
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(level, total=args.examples)
            name, counts, wrong = run_level(level, args.first, args.examples, partial(progress.advance, task))
        refused = sum(counts.get(kind, 0) for kind in REFUSALS)
        seconds = f'{time.perf_counter() - begin:.0f}'
        numbers = (args.examples, counts.get('computed', 0), refused, counts.get('broken', 0), counts.get('death', 0))
        table.add_row(name, *map(str, numbers), seconds)
        failures += [(level, *failure) for failure in wrong]
    console.print(table)
    for level, number, what in failures[:20]:
        console.print(f'{level} {number}: {what}', soft_wrap=True)
    return 1 if failures else 0


if __name__ == '__main__':
    raise SystemExit(main())
