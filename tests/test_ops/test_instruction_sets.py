# SPDX-License-Identifier: Apache-2.0
"""The operators with every instruction set that this processor has, each in a process of its own."""

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import needs_native

pytestmark = [
    needs_native,
    pytest.mark.skipif(platform.machine() != 'x86_64', reason='one instruction set only on this processor'),
]
# What ATEN_CPU_CAPABILITY says, and the level that may run then.
LEVELS = {'default': ('baseline',), 'avx2': ('avx2',), None: ('avx2', 'avx512')}

PROGRAM = """
import sys
import torch
from helpers import compare_with_reference, forward_and_gradients, random_maps
from sapa_mm import ops
from sapa_mm.ops import reference

assert ops.backend() == 'native'
n, c, size, low = 2, 6, (13, 35), (7, 18)
high, feature, weights = (n, c, *size), (n, c, *low), (n, 2 * 25, *size)
offset, vector = (n, 2 * 3 * 2, *size), (c,)
cases = {
    **{f'affiliation {k}': ('point_affiliation', (high, feature, feature), (5, k)) for k in ops.checks.NORMALIZATIONS},
    'assembly': ('feature_assembly', (feature, weights), (5, 2)),
    'scores': ('deformable_scores', (high, feature, offset), (2,)),
    'samples': ('deformable_assembly', (feature, (n, 2 * 3, *size), offset), (2,)),
    'norm': ('channel_norm', (high, vector, vector), ()),
    'projection': ('norm_projection', (high, (5, c), (5,)), ()),
}
results = {}
for name, (function, shapes, options) in cases.items():
    ours, theirs = getattr(ops, function), getattr(reference, function)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        if dtype.itemsize == 2 and function not in ('point_affiliation', 'feature_assembly'):
            continue  # the others take or give the dtype of sums beside it
        compare_with_reference(ours, theirs, random_maps(*shapes, dtype=dtype), *options)
    inputs = random_maps(*shapes, dtype=torch.float32)
    (cotangent,) = random_maps(ours(*inputs, *options).shape, dtype=torch.float32, seed=1)
    output, gradients = forward_and_gradients(lambda *x: ours(*x, *options), inputs, cotangent)
    results[name] = [output, *gradients]
torch.save(dict(results=results, level=torch.ops.sapa_mm.cpu_capability()), sys.argv[1])
"""


@cache
def run(wanted, path):
    """Every operator against the reference in a process with that level; its float32 results and the level it had."""
    env = {key: value for key, value in os.environ.items() if key != 'ATEN_CPU_CAPABILITY'}
    if wanted is not None:
        env['ATEN_CPU_CAPABILITY'] = wanted
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(path)], env=env, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('instruction_sets')


@pytest.mark.parametrize('wanted', LEVELS)
def test_equals_the_reference(wanted, folder):
    assert run(wanted, folder / f'{wanted}.pt')['level'] in LEVELS[wanted]


@pytest.mark.parametrize('wanted', ['avx2', None])
def test_levels_agree_to_roundings(wanted, folder):
    """To a few roundings, and not in all bits: AVX2 fuses products and sums, so another level did run."""
    plain, other = (run(w, folder / f'{w}.pt')['results'] for w in ('default', wanted))
    for name in plain:
        for a, b in zip(plain[name], other[name]):
            assert (a - b).abs().max() <= 2e-5 * a.abs().max(), name
    assert any(not torch.equal(a, b) for name in plain for a, b in zip(plain[name], other[name]))
