#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Break the source in one small way at a time and see whether the tests notice: those that survive lack a test.

Works on a copy of the tree in a temporary folder. Python and CUDA sources (which the tests compile for the host) need
no build; C++ mutants come last and rebuild the library. A mutant whose text is not in exactly the stated number of
places is an error: mend its entry.

    tools/dev/mutants.py                     all of them
    tools/dev/mutants.py -k softmax -k swap  those whose name holds one of these
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
OPS, UPSAMPLERS = 'tests/test_ops', 'tests/test_upsamplers'
AFFILIATION = f'{OPS}/test_point_affiliation.py'
ON_HOST = f'{OPS}/test_cuda_on_host.py'
GOLDEN = 'tests/test_golden.py'


@dataclass
class Mutant:
    name: str
    files: str  #: a glob; the text must be in one of its files
    text: str
    replacement: str
    tests: str  #: arguments of pytest
    places: int = 1  #: where the text must be, all files together; each is changed

    @property
    def needs_build(self):
        return self.files.endswith(('.cpp', '.h', '.inl'))


def zeroed(operator, index):
    """A gradient that is zeros where it is the only one that is wanted."""
    text = 'return (*(g if needed else None for g, needed in zip(grads, needs_grad))'
    return Mutant(
        f'zero gradient {index} of {operator}, alone',
        'sapa_mm/ops/registration.py',
        text,
        f'alone = name == {operator!r} and sum(needs_grad) == 1 and needs_grad[{index}]; '
        f'grads = [g * 0 for g in grads] if alone else grads; {text}',
        f'{OPS}/test_{operator}.py -k single',
    )


MUTANTS = [
    # ---- the definition
    Mutant('window of the definition off by one', 'sapa_mm/ops/borders.py',
           'pad(x, (radius,) * 4)', 'pad(x, (radius + 1, radius - 1, radius, radius))', f'{OPS}/test_reference.py'),
    Mutant('border of the definition clamped', 'sapa_mm/ops/borders.py',
           'pad(x, (radius,) * 4)', "F.pad(x, (radius,) * 4, mode='replicate')", f'{OPS}/test_reference.py'),
    Mutant('windows of the definition not moved inwards', 'sapa_mm/ops/reference.py',
           '.clamp(max=size - kernel_size).clamp(min=0)', '', f'{OPS}/test_reference.py'),
    Mutant('keys outside take part', 'sapa_mm/ops/borders.py',
           'value=torch.finfo(key.dtype).min / 2', 'value=0.0', f'{OPS}/test_borders.py'),
    Mutant('eps of the definition dropped', 'sapa_mm/ops/reference.py',
           'keepdim=True) + EPS)', 'keepdim=True))', f'{OPS}/test_reference.py {AFFILIATION}'),
    Mutant('cells of the definition rounded', 'sapa_mm/ops/maps.py',
           'torch.arange(size, device=device) * cells // size',
           '(torch.arange(size, device=device) * cells + size // 2).clamp(max=size * cells - 1) // size',
           f'{OPS}/test_reference.py'),
    # ---- autograd
    *(zeroed(operator, i) for operator, tensors in
      dict(point_affiliation=3, feature_assembly=2, deformable_scores=3, deformable_assembly=3, channel_norm=3,
           norm_projection=3).items() for i in range(tensors)),
    Mutant('saved outputs lost', 'sapa_mm/ops/registration.py',
           'ctx.save_for_backward(*arguments[:tensors], *saved)',
           'ctx.save_for_backward(*arguments[:tensors], *(x * 0 for x in saved))', AFFILIATION),
    # ---- upsamplers
    Mutant('gate of SAPA swapped', 'sapa_mm/upsamplers/sapa.py',
           'nearest((1 - g) * x, size), nearest(g, size)', 'nearest(g * x, size), nearest(1 - g, size)',
           f'{GOLDEN} -k gate'),
    Mutant('bias of the gate kept', 'sapa_mm/upsamplers/sapa.py',
           'nn.Conv2d(in_channels, 1, 1, bias=bias)', 'nn.Conv2d(in_channels, 1, 1)',
           f'{UPSAMPLERS}/test_sapa.py -k without_bias', places=2),
    Mutant('bias of the offsets kept', 'sapa_mm/upsamplers/sapa_deform.py',
           'nn.Conv2d(in_channels, offsets, 1, bias=bias)', 'nn.Conv2d(in_channels, offsets, 1)',
           f'{UPSAMPLERS}/test_sapa_deform.py -k published_keys'),
    Mutant('linear holistic index not renamed', 'sapa_mm/upsamplers/indexnet.py',
           "f'{prefix}indexnet.0.weight')", "f'{prefix}indexnet.weight')",
           f'{UPSAMPLERS}/test_indexnet.py -k published_layouts'),
    Mutant('blocks of the index in the order of columns', 'sapa_mm/upsamplers/indexnet.py',
           '(self.indexnet1, self.indexnet2, self.indexnet3, self.indexnet4)',
           '(self.indexnet1, self.indexnet3, self.indexnet2, self.indexnet4)', f'{GOLDEN} -k index'),
    Mutant('positions of SAPA-D swap height and width', 'sapa_mm/upsamplers/sapa_deform.py',
           'torch.stack(torch.meshgrid(columns, rows', 'torch.stack(torch.meshgrid(rows, columns',
           f'{UPSAMPLERS}/test_sapa_deform.py -k positions'),
    # ---- CUDA, run on the host
    Mutant('CUDA border clamped', 'ops/cuda/*.cuh',
           'shared[c * halo + i] = inside ? static_cast<acc_t>(*from) : acc_t(0);',
           'shared[c * halo + i] = inside ? static_cast<acc_t>(*from) : static_cast<acc_t>(map.at(place.n, '
           'channel + c, y < 0 ? 0 : y < g.h ? y : g.h - 1, x < 0 ? 0 : x < g.w ? x : g.w - 1));',
           f'{ON_HOST} -k "test_affiliation and x2"'),
    Mutant('CUDA window off by one', 'ops/cuda/*.cuh',
           'halo_x = g.columns().cell_of(x0) -', 'halo_x = g.columns().cell_of(x0) + 1 -',
           f'{ON_HOST} -k "test_affiliation and x2"'),
    Mutant('CUDA eps dropped', 'ops/cuda/*.cuh',
           'if (!softmax) sum += acc_t(kEpsilon);', '', f'{ON_HOST} -k each_normalization'),
    Mutant('CUDA softmax without the maximum', 'ops/cuda/*.cuh',
           'return softmax ? top + log(sum) : sum;', 'return softmax ? log(sum) : sum;',
           f'{ON_HOST} -k "test_affiliation and x2"'),
    Mutant('CUDA mean left out of the gradient', 'ops/cuda/*.cuh',
           'grads[t] = taps[t] * (grads[t] - mean);', 'grads[t] = taps[t] * grads[t];',
           f'{ON_HOST} -k "test_affiliation and x2"'),
    Mutant('CUDA spread one cell short', 'ops/cuda/*.cuh',
           'cell_x <= right', 'cell_x < right', f'{ON_HOST} -k "test_affiliation and x2"'),
    Mutant('CUDA tap transposed in spread', 'ops/cuda/*.cuh',
           '(y - cell_y + radius)) * K + (x - cell_x + radius)', '(x - cell_x + radius)) * K + (y - cell_y + radius)',
           f'{ON_HOST} -k "test_affiliation and x2"'),
    Mutant('CUDA offset swaps height and width', 'ops/cuda/*.cuh',
           'offset.at(n, channel + 1, row, column)', 'offset.at(n, channel, row, column)', f'{ON_HOST} -k sampling'),
    Mutant('CUDA slope of the offset lost across the border', 'ops/cuda/*.cuh',
           'weight * move_x)', 'weight * (corners.x < 0 ? acc_t(0) : move_x))', f'{ON_HOST} -k sampling'),
    Mutant('CUDA slope of the offset kept beyond the border', 'ops/cuda/*.cuh',
           'place >= acc_t(-1) && place <= end ? place : end', 'place <= end ? place < acc_t(-1) ? -1 : place : end',
           f'{ON_HOST} -k sampling'),
    Mutant('CUDA neighbours share a cell at any ratio', 'ops/cuda/*.cuh',
           'columns.size % cells == 0 && columns.size / cells % 2 == 0', 'cells > 0',
           f'{ON_HOST} -k "of_pairs and x3"'),
    Mutant('CUDA squares of spread share the left window', 'ops/cuda/*.cuh',
           'kBegin + 2 * u + i', 'kBegin + i', f'{ON_HOST} -k "of_pairs and x2"'),
    Mutant('CUDA weights not put back for spread', 'ops/cuda/*.cuh',
           '*kept = scores[t];', '', f'{ON_HOST} -k "of_pairs and x2"'),
    Mutant('CUDA taps of any window transposed', 'ops/cuda/*.cuh',
           'use(ky * g.kernel_size + kx, inside', 'use(kx * g.kernel_size + ky, inside',
           f'{ON_HOST} -k "test_assembly and 9-1"'),
    Mutant('CUDA vectors of a place staged over one another', 'ops/cuda/*.cuh',
           'shared[(first + c) / kTogether * halo + i] = values;', 'shared[c / kTogether * halo + i] = values;',
           f'{ON_HOST} -k "affiliation_of_channels_last and x2"'),
    Mutant('CUDA channels of neighbours overlap in spread', 'ops/cuda/*.cuh',
           'step = static_cast<int>(blocks);', 'step = 1;', f'{ON_HOST} -k "assembly_of_channels_last and odd"'),
    Mutant('CUDA barrier dropped before staging', 'ops/cuda/*.cuh',
           '__syncthreads();  // all have used the channels before', '', f'{ON_HOST} -k no_races'),
    # ---- C++ on the CPU
    Mutant('C++ eps dropped', 'ops/cpu/**/*.inl', 'sum += T(kEpsilon);', '', f'{AFFILIATION} -k options'),
    Mutant('C++ gradients of weights left out of those of scores', 'ops/cpu/**/*.inl',
           'slope * centred', 'slope', f'{AFFILIATION} -k "options or gradcheck"'),
    Mutant('C++ softmax without the maximum', 'ops/cpu/**/*.inl',
           'exponential(load(column + t * stride) - top)', 'exponential(load(column + t * stride))', AFFILIATION),
    Mutant('C++ window off by one', 'ops/cpu/planes/ring.h',
           'row(cell_row - kernel_size_ / 2 + ky)', 'row(cell_row + 1 - kernel_size_ / 2 + ky)', AFFILIATION),
    Mutant('C++ left border keeps what was there', 'ops/cpu/planes/ring.h',
           'std::fill_n(out + c * width, before, T(0));', '', AFFILIATION),
]  # fmt: skip


def apply(mutant, tree):
    """Change the copy; the original text of the files that it changed."""
    before = {}
    for path in sorted(tree.glob(mutant.files)):
        text = path.read_text()
        if mutant.text in text:
            before[path] = text
    found = sum(text.count(mutant.text) for text in before.values())
    if found != mutant.places:
        sys.exit(
            f'{mutant.name}: the text is in {found} places of {mutant.files}, not {mutant.places}: {mutant.text!r}'
        )
    for path, text in before.items():
        path.write_text(text.replace(mutant.text, mutant.replacement))
    return before


def build(tree, log):
    command = [sys.executable, 'setup.py', '--quiet', 'build_ext', '--inplace']
    done = subprocess.run(command, cwd=tree, stdout=log, stderr=log, env={**os.environ, 'FORCE_CUDA': '0'})
    return done.returncode == 0


def run_tests(tree, tests, log):
    env = {**os.environ, 'PYTHONPATH': str(tree), 'PYTHONDONTWRITEBYTECODE': '1'}
    command = f'{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}'
    return subprocess.run(command, shell=True, cwd=tree, stdout=log, stderr=log, env=env).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-k', action='append', default=[], metavar='PART', help='only mutants whose name holds this')
    parser.add_argument('--check', action='store_true', help='only check that every text is where it must be')
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.k or any(part in m.name for part in args.k)]

    console, results = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        tree, log_path = Path(folder) / 'tree', Path(folder) / 'log'
        ignore = shutil.ignore_patterns('.git', '.venv', 'work_dirs', '__pycache__')
        shutil.copytree(ROOT, tree, symlinks=True, ignore=ignore)
        for mutant in sorted(chosen, key=lambda m: m.needs_build):
            before, start = apply(mutant, tree), time.monotonic()
            if not args.check:
                with open(log_path, 'w') as log:
                    built = not mutant.needs_build or build(tree, log)
                    # 1: a test failed; anything else but 0 is no answer, such as no test collected
                    code = run_tests(tree, mutant.tests, log) if built else None
                state = {0: 'survived', 1: 'killed', None: 'does not build'}.get(code, f'pytest exited with {code}')
                results.append((mutant, state, time.monotonic() - start))
                console.print(f'{state:10} {mutant.name}')
            for path, text in before.items():
                path.write_text(text)
    if args.check:
        return console.print(f'{len(chosen)} mutants, each text in its place')
    table = Table('mutant', 'files', 'result', 'seconds', title='mutants')
    for mutant, state, seconds in results:
        colour = 'green' if state == 'killed' else 'red'
        table.add_row(mutant.name, mutant.files, f'[{colour}]{state}', f'{seconds:.0f}')
    console.print(table)
    killed = sum(state == 'killed' for _, state, _ in results)
    console.print(f'{killed} of {len(results)} killed')
    return killed != len(results)


if __name__ == '__main__':
    sys.exit(main())
