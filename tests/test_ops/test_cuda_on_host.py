# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own source, run by the host compiler: one thread per CUDA thread, a real barrier.

It proves indices, borders, the use of shared memory and the order of launches, where there is no GPU. Speed, races
inside a warp and the host code around the launches (`ops/cuda/*.cu`) it cannot show.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import random_maps

from sapa_mm.ops import reference
from sapa_mm.ops.checks import NORMALIZATIONS

SOURCE = Path(__file__).with_name('cuda_on_host.cpp')
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
    'not staged': (1, 2, 2, (4, 33), (9, 700)),
}
SIZE = pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    compiler = shutil.which(os.environ.get('CXX', 'c++'))
    if compiler is None:
        pytest.skip('no C++ compiler')
    path = tmp_path_factory.mktemp('cuda_on_host') / 'kernels.so'
    command = [compiler, '-std=c++20', '-O1', '-shared', '-fPIC', '-pthread', str(SOURCE), '-o', str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "'barrier' file not found" in done.stderr or 'barrier: No such file' in done.stderr:
        pytest.skip('this C++ library has no <barrier>')
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(path))


def run(library, name, sizes, maps, *arguments):
    """Call ``name`` for the type of ``maps``, whose strides it gets; tensors become pointers, None stays null."""
    dtype = {torch.float32: 'float', torch.float64: 'double'}[maps[0].dtype]
    strides = [stride for x in maps for stride in x.stride()]
    arguments = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
    arguments = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
    getattr(library, f'{name}_{dtype}')(
        (ctypes.c_int64 * len(sizes))(*sizes), (ctypes.c_int64 * len(strides))(*strides), *arguments
    )


def filled(*shape, dtype=torch.float64):
    """Room for a result: what is not written stays NaN."""
    return torch.full(shape, torch.nan, dtype=dtype)


def check_affiliation(library, size, kernel_size, normalization, dtype=torch.float64, channels_last=False, images=1,
                      wanted=(True, True, True)):  # fmt: skip
    n, d, c, (height, width), (h, w) = size
    maps = random_maps((n, d, height, width), (n, d, h, w), (n, c, h, w), (n, c, height, width), dtype=dtype)
    if channels_last:
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    query, key, value, grad = maps
    output = torch.full_like(grad, torch.nan)
    normalizer = filled(n, height, width, dtype=dtype)
    sizes = (n, d, c, height, width, h, w, kernel_size, 1)
    code = NORMALIZATIONS.index(normalization)
    run(library, 'affiliation', sizes, maps, code, query, key, value, output, normalizer)

    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = reference.point_affiliation(*leaves, kernel_size, normalization)
    tolerance = dict(rtol=1e-9, atol=1e-9) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output, expected.detach(), **tolerance)

    grads = [filled(*x.shape, dtype=dtype) if want else None for x, want in zip(leaves, wanted)]
    run(library, 'affiliation_backward', sizes, maps, code, images, query, key, value, grad, normalizer, *grads)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, leaves, grad)):
        if ours is not None:
            torch.testing.assert_close(ours, theirs.contiguous(), **tolerance)


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


def test_affiliation_of_channels_last(kernels):
    check_affiliation(kernels, SIZES['odd'], 5, 'softmax', channels_last=True)


def test_affiliation_in_float32(kernels):
    check_affiliation(kernels, SIZES['x2'], 5, 'softmax', dtype=torch.float32)


@pytest.mark.parametrize('images', [1, 2, 3])
def test_affiliation_backward_by_groups_of_images(kernels, images):
    check_affiliation(kernels, SIZES['tiny'], 5, 'softmax', images=images)


@pytest.mark.parametrize('wanted', [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_affiliation_with_one_gradient(kernels, wanted):
    check_affiliation(kernels, SIZES['odd'], 3, 'relu', wanted=wanted)


@SIZE
@pytest.mark.parametrize('kernel_size, groups', [(5, 1), (3, 2), (9, 1)])
def test_assembly(kernels, size, kernel_size, groups):
    n, _, c, (height, width), (h, w) = size
    c *= groups
    maps = random_maps((n, c, h, w), (n, groups * kernel_size**2, height, width), (n, c, height, width))
    feature, weights, grad = maps
    output = filled(n, c, height, width)
    sizes = (n, 0, c, height, width, h, w, kernel_size, groups)
    run(kernels, 'assembly', sizes, maps, feature, weights, output)
    leaves = [x.clone().requires_grad_() for x in (feature, weights)]
    expected = reference.feature_assembly(*leaves, kernel_size, groups)
    torch.testing.assert_close(output, expected.detach(), rtol=1e-9, atol=1e-9)

    theirs = torch.autograd.grad(expected, leaves, grad)
    for wanted in ([True, True], [True, False], [False, True]):
        grads = [filled(*x.shape) if want else None for x, want in zip(leaves, wanted)]
        run(kernels, 'assembly_backward', sizes, maps, feature, weights, grad, *grads)
        for ours, other in zip(grads, theirs):
            if ours is not None:
                torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)


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
