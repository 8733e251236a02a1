# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels without a GPU: in Triton's interpreter against the reference, and compiled for two architectures.

The interpreter computes with numpy: it proves indices, masks and what is multiplied with what, for half; bfloat16 it
holds as integers, and its products of them are wrong. Barriers, layouts of registers and speed it does not know.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TOLERANCE
from triton_cases import AFFILIATION, NON_FINITE, NORM

from sapa_mm.ops import backend, library, point_affiliation, triton
from sapa_mm.ops.borders import BORDERS

needs_triton = pytest.mark.skipif(not triton.is_there, reason='triton is not installed, or older than 3.6')


@pytest.fixture(scope='module')
def interpreted():
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'SAPA_MM_BACKEND': 'triton', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(Path(__file__).with_name('triton_cases.py'))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.parametrize('name', [*AFFILIATION, *NORM, 'large scores', 'large gradients'])
def test_matches_reference(interpreted, name):
    assert max(interpreted[name]) < TOLERANCE[torch.half]


@needs_triton
@pytest.mark.parametrize('name', [f'{bad} in {where}' for bad, where in NON_FINITE])
def test_non_finite_values_stay_in_their_windows(interpreted, name):
    """The same positions as in the reference; where that mixes infinities to a number, these may too."""
    ours, theirs = interpreted['finite'][name]
    assert ours == theirs
    assert any(0 in row for x in ours for row in x) and any(1 in row for x in ours for row in x)


@needs_triton
def test_a_single_gradient(interpreted):
    assert interpreted['one gradient'] == [[i == j for j in range(3)] for i in range(3)]


@needs_triton
def test_who_serves(interpreted):
    other = 'cpu' if backend() == 'native' else 'reference'
    assert interpreted['backends'] == [other, other, 'triton', other, other]


def test_backend_is_asked_for_by_name():
    x = torch.ones(1, 2, 4, 4)
    served = 'cpu' if backend() == 'native' else 'reference'
    assert backend(x) == served
    with library.prefer('cuda'):
        assert backend(x) == served
    with library.prefer('reference'):
        assert backend(x) == 'reference'
        assert point_affiliation(x, x, x, 3).shape == x.shape
    with pytest.raises(ValueError, match="operator must be one of .*, got 'sapa'"):
        backend(x, operator='sapa')


def test_borders_are_not_served(monkeypatch):
    monkeypatch.setattr(triton, 'is_there', True)
    monkeypatch.setattr(triton, '_interprets', True)
    query, key = torch.ones(1, 2, 8, 8, dtype=torch.half), torch.ones(1, 2, 4, 4, dtype=torch.half)
    other = 'cpu' if backend() == 'native' else 'reference'
    assert backend(query, key, 5) == backend(query, key, 5, 'zero') == 'triton'
    assert [backend(query, key, 5, border) for border in BORDERS[1:]] == [other] * 4
    assert point_affiliation(query, key, key, 5, border='shift').shape == query.shape  # Triton would refuse it


def arguments_of(name):
    """Of a raw backward, by name, all of them right."""
    half, single = torch.half, torch.float32
    if name == 'norm_projection':
        maps = dict(grad=(1, 4, 8, 8), x=(1, 2, 8, 8))
        sums = dict(matrix=(4, 2), shift=(4,), mean=(1, 8, 8), rstd=(1, 8, 8))
        options = dict(eps=1e-5)
    else:
        maps = dict(grad=(1, 3, 8, 8), query=(1, 2, 8, 8), key=(1, 2, 4, 4), value=(1, 3, 4, 4))
        sums = dict(normalizer=(1, 8, 8))
        options = dict(kernel_size=3, normalization=0, border=0)
    tensors = {k: torch.ones(s, dtype=half) for k, s in maps.items()}
    return tensors | {k: torch.ones(s, dtype=single) for k, s in sums.items()} | options | dict(needs_grad=[True] * 3)


@needs_triton
@pytest.mark.parametrize(
    'name, changed, error, match',
    [
        ('point_affiliation', dict(grad=torch.ones(1, 3, 8, 7).half()), ValueError, 'grad must have shape .*, 8, 8'),
        ('point_affiliation', dict(grad=torch.ones(1, 3, 8, 8)), TypeError, 'grad must have dtype torch.float16'),
        ('point_affiliation', dict(normalizer=torch.ones(1, 8, 7)), ValueError, 'normalizer must have shape'),
        ('point_affiliation', dict(value=torch.ones(1, 3, 4, 5).half()), ValueError, 'key and value must have'),
        ('point_affiliation', dict(key=torch.ones(1, 2, 4, 4).half().to('meta')), ValueError, 'must be on one device'),
        ('point_affiliation', dict(kernel_size=9), ValueError, 'windows that fit into a tile'),
        ('point_affiliation', dict(normalization=4), ValueError, 'normalization must be 0 to 3, got 4'),
        ('point_affiliation', dict(border=1), ValueError, 'border 0 .* got 1'),
        ('norm_projection', dict(grad=torch.ones(1, 3, 8, 8).half()), ValueError, r'grad must have shape \(1, 4, 8, 8'),
        ('norm_projection', dict(rstd=torch.ones(8, 8)), ValueError, 'rstd must have shape'),
        ('norm_projection', dict(mean=torch.ones(1, 8, 8).half()), TypeError, 'mean must have dtype torch.float32'),
        ('norm_projection', dict(shift=torch.ones(4).to('meta')), ValueError, 'shift must be on cpu, got meta'),
    ],
)  # fmt: skip
def test_bad_input_of_a_backward(name, changed, error, match):
    """Before a kernel would read memory that is not there."""
    backward = importlib.import_module(f'sapa_mm.ops.triton.{name}').backward
    with pytest.raises(error, match=match):
        backward(*(arguments_of(name) | changed).values())


def test_backend_of_no_name_is_refused():
    environment = {**os.environ, 'SAPA_MM_BACKEND': 'rocm'}
    done = subprocess.run([sys.executable, '-c', 'import sapa_mm.ops'], capture_output=True, text=True, env=environment)
    assert "ValueError: SAPA_MM_BACKEND must be one of ('triton', 'cuda', 'reference'), got 'rocm'" in done.stderr


def test_tiles_reach_no_further_than_their_cells():
    """Windows of the positions of a tile, wherever it starts, and the cells that it has room for."""
    for ratio in range(1, 20):
        for kernel_size in (1, 3, 5, 7):
            rows, _ = triton.tile_sides((ratio * 40, ratio * 40), (40, 40), kernel_size)
            for start in range(0, ratio * 40, rows) if rows else ():
                cells = {y // ratio + d for y in range(start, start + rows) for d in range(kernel_size)}
                assert max(cells) - min(cells) < triton.CELLS
    assert triton.tile_sides((8, 12), (4, 4), 5) == (8, 8)
    assert triton.tile_sides((4, 4), (4, 4), 7) == (2, 2)  # too few positions for tensor cores: not served


def compiled(kernel, constants, capability, pointers, floats=(), divisible=True):
    """A kernel as a launch with large contiguous half maps would compile it, but without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    constants = dict(constants)
    options = {name: constants.pop(name) for name in ('num_warps', 'num_stages') if name in constants}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name.endswith(('_x', '_p')) and name not in pointers:
            constants[name] = 1  # the stride between neighbours
        if name in constants:
            signature[name] = 'constexpr'
            continue
        signature[name] = pointers.get(name, 'fp32' if name in floats else 'i32')
        if name in pointers or (divisible and name not in floats):
            attributes[(i,)] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return compile_source(source, target=GPUTarget('cuda', capability, 32), options=options)


def resources(cubin, tmp_path):
    """Registers and bytes of local memory of a thread, by NVIDIA's own tool, which comes with triton."""
    import triton.backends.nvidia

    path = tmp_path / 'kernel.cubin'
    path.write_bytes(cubin)
    tool = Path(triton.backends.nvidia.__file__).with_name('bin') / 'cuobjdump'
    text = subprocess.run([tool, '-res-usage', path], capture_output=True, text=True, check=True).stdout
    return [int(re.search(rf'{what}:(\d+)', text)[1]) for what in ('REG', 'STACK')]


HALF, FLOAT = '*fp16', '*fp32'
WINDOW = dict(RATIO_Y=2, RATIO_X=2, RADIUS=2, CELLS=8, ROWS=8, COLUMNS=8)
MAPS = dict.fromkeys(('grad', 'query', 'key', 'value', 'output', 'grad_query', 'weights', 'source', 'target'), HALF)
SAVED = dict.fromkeys(('normalizer', 'grad_scores'), FLOAT)
NORM_MAPS = dict(grad=HALF, x=HALF, output=HALF, matrix=FLOAT, shift=FLOAT, mean=FLOAT, rstd=FLOAT)
NORM_SIZES = dict(BLOCK_P=64, BLOCK_C=64, BLOCK_D=32)
WHOLE = dict(WHOLE_D=True, WHOLE_C=True, BLOCK_D=32, NORMALIZATION=0)
NEEDS = dict(NEEDS_QUERY=True, NEEDS_KEY=True, NEEDS_VALUE=True)
GATHER = {**WINDOW, 'WHOLE_C': True}
TAPS = {**MAPS, 'taps': HALF}
#: name: module, kernel, constants, pointers
KERNELS = {
    'forward': ('point_affiliation', 'forward_kernel', {**WINDOW, **WHOLE}, {**MAPS, **SAVED}),
    'query': ('point_affiliation', 'query_backward_kernel', {**WINDOW, **WHOLE, **NEEDS}, {**MAPS, **SAVED}),
    'gather key': ('point_affiliation', 'gather_kernel', GATHER, {**MAPS, 'taps': FLOAT}),
    'gather value': ('point_affiliation', 'gather_kernel', GATHER, TAPS),
    'gather odd': ('point_affiliation', 'gather_kernel', {**GATHER, 'WHOLE_C': False}, TAPS),
    'norm forward': ('norm_projection', 'forward_kernel', NORM_SIZES, NORM_MAPS),
    'norm map': ('norm_projection', 'map_backward_kernel', NORM_SIZES, {**NORM_MAPS, 'grad_x': HALF}),
    'norm matrix': ('norm_projection', 'matrix_backward_kernel', NORM_SIZES, {**NORM_MAPS, 'grad_matrix': FLOAT}),
}
#: Architecture -> bytes of shared memory that a program may have; of sm_86 and sm_89, which run what sm_80 does.
SHARED = {80: 99 * 2**10, 90: 227 * 2**10}


def launched(kernels, case, capability):
    """Channels at a time and options of a kernel of point affiliation, as a launch for C = 256 and D = 32 has them."""
    channels = {
        'forward': kernels.MIXED,
        'query': kernels.SUMMED[0],
        'gather key': 32,
        'gather value': kernels.GATHERED[0],
        'gather odd': kernels.GATHERED[1],
    }[case]
    gathers = case.startswith('gather')
    return dict(BLOCK_C=channels, **(kernels.of_cells(channels, capability == 90) if gathers else kernels.OF_POSITIONS))


@needs_triton
@pytest.mark.parametrize('capability', SHARED)
@pytest.mark.parametrize('case', KERNELS)
def test_compiles_to_tensor_cores_without_spills(case, capability, tmp_path, monkeypatch):
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    module, name, constants, pointers = KERNELS[case]
    kernels = pytest.importorskip(f'sapa_mm.ops.triton.{module}')
    if module == 'point_affiliation':
        constants = {**constants, **launched(kernels, case, capability)}
    kernel = compiled(getattr(kernels, name), constants, capability, pointers, ('eps',), case != 'gather odd')
    assert re.search(r'wgmma\.mma_async|mma\.sync', kernel.asm['ptx'])
    assert kernel.metadata.shared <= SHARED[capability]
    registers, stack = resources(kernel.asm['cubin'], tmp_path)
    assert registers <= 255 and stack == 0
    # four positions of a map are copied at once, past the registers, and of taps the two of a cell
    copied = set(re.findall(r'cp\.async\.\w+\.shared\.global \[[^]]*\], \[[^]]*\], (0x\w+)', kernel.asm['ptx']))
    if case in ('gather key', 'gather value'):
        assert copied == ({'0x8'} if case == 'gather key' else {'0x8', '0x4'})
