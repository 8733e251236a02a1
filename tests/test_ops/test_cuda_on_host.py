# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own source, run by the host compiler: one thread per CUDA thread, a real barrier, blocks at once.

It proves indices, borders, the use of shared memory and the order of launches, where there is no GPU; ThreadSanitizer
proves that barriers and atomics are where they must be. Speed, what holds inside a warp only and the host code around
the launches (`ops/cuda/*.cu`) it cannot show.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import TOLERANCE, random_maps

from sapa_mm.ops import reference
from sapa_mm.ops.borders import BORDERS, lay_assembly_border, lay_border
from sapa_mm.ops.checks import NORMALIZATIONS

SOURCE = Path(__file__).with_name('cuda_on_host.cpp')
ROOT = Path(__file__).parents[2]
# N, D, C, (H, W), (h, w): more than one tile; exact, odd, large and small ratios; maps smaller than the window; and
# outputs so narrow that the halo does not fit into shared memory
SIZES = {
    'x2': (2, 5, 9, (22, 40), (11, 20)),
    'x4': (1, 3, 2, (16, 36), (4, 9)),
    'odd': (2, 4, 3, (13, 35), (7, 18)),
    'x3.7': (1, 2, 3, (37, 41), (10, 11)),
    'equal': (1, 3, 4, (9, 7), (9, 7)),
    'smaller': (2, 3, 3, (5, 11), (12, 30)),
    'tiny': (3, 2, 1, (3, 2), (1, 1)),
    'parts of the channels': (2, 2, 75, (6, 8), (3, 4)),
    'not staged': (1, 2, 2, (4, 33), (9, 700)),
}
SIZE = pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())


def compile_with(flags, source, target):
    compiler = shutil.which(os.environ.get('CXX', 'c++'))
    if compiler is None:
        pytest.skip('no C++ compiler')
    command = [compiler, '-std=c++20', '-pthread', *flags, str(source), '-o', str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "'barrier' file not found" in done.stderr or 'barrier: No such file' in done.stderr:
        pytest.skip('this C++ library has no <barrier>')
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    path = tmp_path_factory.mktemp('cuda_on_host') / 'kernels.so'
    # A GPU refuses what is not aligned; here it ends the process.
    aligned = ['-fsanitize=alignment', '-fsanitize-undefined-trap-on-error']
    compile_with(['-O1', '-shared', '-fPIC', *aligned], SOURCE, path)
    return ctypes.CDLL(str(path))


def run(library, name, sizes, maps, *arguments):
    """Call ``name`` for the type of ``maps``, whose strides it gets; tensors become pointers, None stays null."""
    dtype = {torch.float32: 'float', torch.float64: 'double', torch.float16: 'half', torch.bfloat16: 'bfloat16'}[
        maps[0].dtype
    ]
    strides = [stride for x in maps for stride in x.stride()]
    arguments = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
    arguments = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
    getattr(library, f'{name}_{dtype}')(
        (ctypes.c_int64 * len(sizes))(*sizes), (ctypes.c_int64 * len(strides))(*strides), *arguments
    )


def filled(*shape, dtype=torch.float64):
    """Room for a result: what is not written stays NaN."""
    return torch.full(shape, torch.nan, dtype=dtype)


def filled_like(x):
    """The same with the strides of ``x``, if it is wanted."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).fill_(torch.nan)


def in_layout(x, channels_last, skipped=0):
    """``x`` in this layout, ``skipped`` numbers behind an aligned place."""
    strides = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format).stride()
    return torch.empty(skipped + x.numel(), dtype=x.dtype).as_strided(x.shape, strides, skipped).copy_(x)


def sums_of(dtype):
    return dtype if dtype == torch.float64 else torch.float32


def assert_near(actual, expected):
    """Within a few roundings of the largest value; an element that was not written is NaN and fails."""
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=0.1)
    # 1e-9 in float64 keeps what this file has asked for: it looks for wrong places, which are far beyond.
    assert error <= (1e-9 if actual.dtype == torch.float64 else TOLERANCE[actual.dtype])


def check_affiliation(library, size, kernel_size, normalization, dtype=torch.float64, channels_last=False, images=1,
                      wanted=(True, True, True), border='zero', skipped=0):  # fmt: skip
    n, d, c, (height, width), (h, w) = size
    maps = random_maps((n, d, height, width), (n, d, h, w), (n, c, h, w), (n, c, height, width), dtype=dtype)
    layouts = [channels_last] * 4 if isinstance(channels_last, bool) else channels_last
    maps = [in_layout(x, layout, skipped) for x, layout in zip(maps, layouts)]
    *inputs, grad = maps
    inputs = [x.requires_grad_() for x in inputs]
    *laid, border_code = lay_border(kernel_size, border, *inputs)  # as the public function does
    query, key, value = (x.detach() for x in laid)
    maps, d, (h, w) = [query, key, value, grad], query.shape[1], key.shape[2:]
    output = filled_like(grad)
    normalizer = filled(n, height, width, dtype=sums_of(dtype))
    sizes = (n, d, c, height, width, h, w, kernel_size, 1, border_code)
    code = NORMALIZATIONS.index(normalization)
    run(library, 'affiliation', sizes, maps, code, query, key, value, output, normalizer)

    leaves = [x.detach().double().requires_grad_() for x in inputs]
    expected = reference.point_affiliation(*leaves, kernel_size, normalization, border)
    assert_near(output, expected.detach())
    if normalization == 'softmax':  # backward divides by the sum again, which would hide another normalizer
        scores = reference.affiliation_scores(*(x.detach() for x in leaves[:2]), kernel_size, border)
        assert_near(normalizer, scores.logsumexp(1))

    grads = [filled_like(x) if want else None for x, want in zip(laid, wanted)]
    run(library, 'affiliation_backward', sizes, maps, code, images, query, key, value, grad, normalizer, *grads)
    theirs = torch.autograd.grad(expected, leaves, grad.double())
    for input, prepared, ours, other in zip(inputs, laid, grads, theirs):
        if ours is not None:
            assert_near(ours if prepared is input else torch.autograd.grad(prepared, input, ours)[0], other)


@SIZE
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_affiliation(kernels, size, kernel_size):
    check_affiliation(kernels, size, kernel_size, 'softmax')


@pytest.mark.parametrize('kernel_size', [1, 7, 9])
def test_affiliation_of_other_windows(kernels, kernel_size):
    check_affiliation(kernels, SIZES['odd'], kernel_size, 'softmax')


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_affiliation_with_each_normalization(kernels, normalization):
    check_affiliation(kernels, SIZES['tiny'], 3, normalization)
    check_affiliation(kernels, SIZES['x2'], 5, normalization)


@pytest.mark.parametrize('border', BORDERS[1:])
@pytest.mark.parametrize('size', ['x2', 'odd', 'smaller', 'tiny'])
def test_affiliation_with_each_border(kernels, size, border):
    check_affiliation(kernels, SIZES[size], 3, 'softmax', border=border)


# D and C: whole vectors of 16 bytes of float32 or of all types, several and parts of what is staged at a time, and what
# no vectors divide; with (22, 40) and (11, 20) a thread has two columns, with the other sizes one.
CHANNELS_LAST = {
    'x2': (1, 8, 8, (22, 40), (11, 20)),
    'odd': (2, 24, 16, (13, 35), (7, 18)),
    'x4': (1, 16, 40, (12, 16), (3, 4)),
    'equal': (1, 8, 4, (9, 7), (9, 7)),
    'not all': (1, 8, 67, (6, 12), (3, 6)),
    'none': (1, 5, 4, (6, 12), (3, 6)),
    'parts of the channels': (2, 4, 72, (6, 8), (3, 4)),
    'not staged': (1, 8, 8, (4, 33), (9, 700)),
}
ALL_CHANNELS_LAST = pytest.mark.parametrize('size', CHANNELS_LAST.values(), ids=CHANNELS_LAST.keys())


@ALL_CHANNELS_LAST
@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_affiliation_of_channels_last(kernels, size, kernel_size):
    check_affiliation(kernels, size, kernel_size, 'softmax', torch.float32, channels_last=True)


@pytest.mark.parametrize('kernel_size', [1, 9])
def test_affiliation_of_channels_last_by_other_kernels(kernels, kernel_size):
    check_affiliation(kernels, CHANNELS_LAST['x4'], kernel_size, 'softmax', torch.float32, channels_last=True)
    check_affiliation(kernels, CHANNELS_LAST['x4'], kernel_size, 'softmax', channels_last=True)


@pytest.mark.parametrize('size', ['x2', 'odd', 'equal'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_affiliation_of_channels_last_in_other_types(kernels, dtype, size):
    for kernel_size in (5, 7):
        check_affiliation(kernels, CHANNELS_LAST[size], kernel_size, 'softmax', dtype, channels_last=True)


@pytest.mark.parametrize('index', range(4), ids=['query', 'key', 'value', 'grad'])
@pytest.mark.parametrize('others', [False, True], ids=['alone', 'all but it'])
def test_affiliation_of_mixed_layouts(kernels, index, others):
    layouts = [(i == index) != others for i in range(4)]
    check_affiliation(kernels, CHANNELS_LAST['x2'], 3, 'softmax', torch.float32, channels_last=layouts)


def test_affiliation_of_channels_last_that_is_not_aligned(kernels):
    check_affiliation(kernels, CHANNELS_LAST['x2'], 3, 'softmax', torch.float32, channels_last=True, skipped=1)


@ALL_CHANNELS_LAST
@pytest.mark.parametrize('groups', [1, 2])
def test_assembly_of_channels_last(kernels, size, groups):
    for kernel_size in (3, 5):
        check_assembly(kernels, size, kernel_size, groups, dtype=torch.float32, channels_last=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_assembly_of_channels_last_in_other_types(kernels, dtype):
    check_assembly(kernels, CHANNELS_LAST['odd'], 5, 2, dtype=dtype, channels_last=True)
    check_assembly(kernels, CHANNELS_LAST['x2'], 3, 2, dtype=dtype, channels_last=True)


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_affiliation_in_other_types(kernels, dtype, normalization):
    check_affiliation(kernels, SIZES['x2'], 5, normalization, dtype=dtype)
    check_affiliation(kernels, SIZES['not staged'], 3, normalization, dtype=dtype)


# Neighbours that share a cell belong to one thread, and so do squares of cells in the gradients: more than one tile, an
# odd number of rows of cells, ratios that are even, and one that is not.
PAIRS = {
    'x2': (2, 2, 9, (6, 72), (3, 36)),
    'x3': (1, 2, 3, (6, 12), (2, 4)),
    'x4': (1, 2, 3, (12, 16), (3, 4)),
    'wide': (1, 2, 3, (6, 16), (4, 4)),
}


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('size', PAIRS.values(), ids=PAIRS.keys())
def test_affiliation_of_pairs(kernels, size, kernel_size):
    check_affiliation(kernels, size, kernel_size, 'softmax', dtype=torch.float32)


@pytest.mark.parametrize('border', ['shift', 'reflect'])
def test_affiliation_of_pairs_with_borders(kernels, border):
    check_affiliation(kernels, PAIRS['x2'], 3, 'softmax', dtype=torch.float32, border=border)


@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_assembly_of_pairs(kernels, kernel_size):
    check_assembly(kernels, PAIRS['x2'], kernel_size, 2, dtype=torch.float32)


@pytest.mark.parametrize('images', [1, 2, 3])
def test_affiliation_backward_by_groups_of_images(kernels, images):
    check_affiliation(kernels, SIZES['tiny'], 5, 'softmax', images=images)


@pytest.mark.parametrize('wanted', [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_affiliation_with_one_gradient(kernels, wanted):
    check_affiliation(kernels, SIZES['odd'], 3, 'relu', wanted=wanted)


@SIZE
@pytest.mark.parametrize('kernel_size, groups', [(5, 1), (3, 2), (9, 1)])
def test_assembly(kernels, size, kernel_size, groups):
    check_assembly(kernels, size, kernel_size, groups)


def test_assembly_with_shifted_windows(kernels):
    check_assembly(kernels, SIZES['odd'], 5, 2, 'shift')


def check_assembly(kernels, size, kernel_size, groups, border='zero', dtype=torch.float64, channels_last=False):
    n, _, c, (height, width), (h, w) = size
    c *= groups
    shapes = (n, c, h, w), (n, groups * kernel_size**2, height, width), (n, c, height, width)
    feature, weights, grad = maps = [in_layout(x, channels_last) for x in random_maps(*shapes, dtype=dtype)]
    output = filled_like(grad)
    sizes = (n, 0, c, height, width, h, w, kernel_size, groups, lay_assembly_border(kernel_size, border, feature)[1])
    run(kernels, 'assembly', sizes, maps, feature, weights, output)
    leaves = [x.double().requires_grad_() for x in (feature, weights)]
    expected = reference.feature_assembly(*leaves, kernel_size, groups, border)
    assert_near(output, expected.detach())

    theirs = torch.autograd.grad(expected, leaves, grad.double())
    for wanted in ([True, True], [True, False], [False, True]):
        grads = [filled_like(x) if want else None for x, want in zip(maps, wanted)]
        run(kernels, 'assembly_backward', sizes, maps, feature, weights, grad, *grads)
        for ours, other in zip(grads, theirs):
            if ours is not None:
                assert_near(ours, other)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_assembly_in_other_types(kernels, dtype):
    check_assembly(kernels, (2, 0, 3, (13, 35), (7, 18)), 5, 2, dtype=dtype)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sampling_in_other_types(kernels, dtype):
    query, key, offset = maps = random_maps((2, 6, 7, 9), (2, 6, 4, 5), (2, 2 * 3 * 2, 7, 9), dtype=dtype)
    (grad,) = random_maps((2, 6, 7, 9), dtype=torch.float32, seed=1)  # scores and their gradients are in that of sums
    sizes = (2, 6, 7, 9, 4, 5, 2, 3)
    scores, grad_key = torch.full_like(grad, torch.nan), torch.zeros(key.shape)
    grad_query, grad_offset = (torch.full_like(x, torch.nan) for x in (query, offset))
    run(kernels, 'correlate_points', sizes, maps, query, key, offset, scores, grad, grad_offset)
    run(kernels, 'assemble_points', sizes, maps, grad, key, offset, grad_query)
    run(kernels, 'spread_points', sizes, maps, grad, query, offset, grad_key)
    leaves = [x.double().requires_grad_() for x in (query, key, offset)]
    expected = reference.deformable_scores(*leaves, 2)
    assert_near(scores, expected.detach())
    theirs = torch.autograd.grad(expected, leaves, grad.double())
    for ours, other in zip((grad_query, grad_key, grad_offset), theirs):
        assert_near(ours, other)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('groups, points, channels', [(1, 3, 5), (2, 4, 9)])
@SIZE
def test_sampling(kernels, size, groups, points, channels, channels_last):
    """The three kernels and the places of the points, some of them far outside the map."""
    n, _, _, (height, width), (h, w) = size
    c = groups * channels
    shapes = (n, c, height, width), (n, c, h, w), (n, groups * points * 2, height, width)
    query, key, offset = random_maps(*shapes)
    offset *= 2
    if channels_last:
        query, key, offset = (x.contiguous(memory_format=torch.channels_last) for x in (query, key, offset))
    (grad,) = random_maps((n, groups * points, height, width), seed=1)
    maps, sizes = (query, key, offset), (n, c, height, width, h, w, groups, points)
    scores, grad_key = filled(*grad.shape), torch.zeros(key.shape, dtype=key.dtype)
    grad_query, grad_offset = (torch.full_like(x, torch.nan) for x in (query, offset))
    run(kernels, 'correlate_points', sizes, maps, query, key, offset, scores, grad, grad_offset)
    run(kernels, 'assemble_points', sizes, maps, grad, key, offset, grad_query)
    run(kernels, 'spread_points', sizes, maps, grad, query, offset, grad_key)

    leaves = [x.clone().requires_grad_() for x in (query, key, offset)]
    expected = reference.deformable_scores(*leaves, groups)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-9, atol=1e-9)
    for ours, theirs in zip((grad_query, grad_key, grad_offset), torch.autograd.grad(expected, leaves, grad)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, check_stride=False)

    # with only one of its two results wanted
    again = filled(*grad.shape)
    run(kernels, 'correlate_points', sizes, maps, query, key, offset, again, None, None)
    assert torch.equal(again, scores)
    again = torch.full_like(offset, torch.nan)
    run(kernels, 'correlate_points', sizes, maps, query, key, offset, None, grad, again)
    assert torch.equal(again, grad_offset)


def test_sampling_at_no_number(kernels):
    """It makes the result NaN, and reads nothing outside."""
    query, key, offset = random_maps((1, 4, 4, 33), (1, 4, 2, 3), (1, 4, 4, 33))
    weights = torch.ones(1, 2, 4, 33, dtype=torch.float64)
    offset[0, 0, 1, 2], offset[0, 3, 3, 3], offset[0, 1, 2, 1] = torch.nan, torch.nan, torch.inf
    maps, sizes, out = (query, key, offset), (1, 4, 4, 33, 2, 3, 1, 2), torch.empty_like(query)
    scores = filled(1, 2, 4, 33)
    run(kernels, 'correlate_points', sizes, maps, query, key, offset, scores, None, None)
    run(kernels, 'assemble_points', sizes, maps, weights, key, offset, out)
    assert scores.isnan().nonzero().tolist() == [[0, 0, 1, 2], [0, 1, 3, 3]]
    assert sorted(set(map(tuple, out.isnan().nonzero()[:, 2:].tolist()))) == [(1, 2), (3, 3)]


@pytest.fixture(scope='module')
def races(tmp_path_factory):
    """Runs all kernels under ThreadSanitizer, without what is ``left_out``, and gives the number of races it saw."""
    path = tmp_path_factory.mktemp('cuda_on_host_races') / 'races'
    source = SOURCE.with_name('cuda_on_host_races.cpp')
    try:
        compile_with(['-O1', '-g', '-fsanitize=thread'], source, path)
    except AssertionError as error:
        if 'tsan' not in str(error):
            raise
        pytest.skip('the compiler has no ThreadSanitizer')

    def run(left_out=''):
        options = 'exitcode=66 halt_on_error=' + ('1' if left_out else '0')
        command = [str(path), left_out]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'TSAN_OPTIONS': options})
        if 'unexpected memory mapping' in done.stderr:
            pytest.skip('ThreadSanitizer does not run on this kernel')
        count = done.stderr.count('WARNING: ThreadSanitizer: data race')
        assert done.returncode == (66 if count else 0), done.stderr[-3000:]
        return count

    return run


def barriers():
    """FILE:LINE of every barrier in the kernels."""
    for path in sorted((ROOT / 'ops' / 'cuda').glob('*.cuh')):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if '__syncthreads()' in line:
                yield f'/{path.name}:{number}'


def test_no_races(races):
    assert races() == 0


@pytest.mark.parametrize('left_out', [*barriers(), 'atomicAdd'])
def test_each_barrier_and_the_atomics_are_needed(races, left_out):
    """Without it there is a race, so the program above would have seen that it is missing."""
    assert races(left_out) > 0
