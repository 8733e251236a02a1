# SPDX-License-Identifier: Apache-2.0
"""The reference against nested loops that follow the definition word by word."""

import math

import pytest
import torch
from helpers import random_maps
from torch.nn import functional as F

from sapa_mm.ops import reference

H = dict(
    softmax=math.exp,
    relu=lambda s: max(s, 0.0),
    sigmoid=lambda s: 1 / (1 + math.exp(-s)),
    softplus=lambda s: math.log1p(math.exp(s)),
)
SIZES = [((3, 4), (6, 8)), ((3, 4), (7, 9)), ((5, 3), (5, 3)), ((2, 2), (7, 5)), ((5, 7), (3, 4)), ((1, 1), (3, 2))]


def loop_windows(size, cells, kernel_size):
    """(y, x, tap, cell row, cell column) of every output position and tap; the cell may lie outside the map."""
    radius = kernel_size // 2
    for y in range(size[0]):
        for x in range(size[1]):
            row, column = math.floor(y * cells[0] / size[0]), math.floor(x * cells[1] / size[1])
            for ky in range(kernel_size):
                for kx in range(kernel_size):
                    yield y, x, ky * kernel_size + kx, row - radius + ky, column - radius + kx


def inside(row, column, cells):
    return 0 <= row < cells[0] and 0 <= column < cells[1]


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize(('cells', 'size'), SIZES)
def test_scores(cells, size, kernel_size):
    query, key = random_maps((2, 3, *size), (2, 3, *cells))
    expected = torch.zeros(2, kernel_size**2, *size, dtype=torch.float64)
    for y, x, tap, row, column in loop_windows(size, cells, kernel_size):
        if inside(row, column, cells):
            expected[:, tap, y, x] = (query[:, :, y, x] * key[:, :, row, column]).sum(1)
    assert torch.allclose(reference.affiliation_scores(query, key, kernel_size), expected, atol=1e-13)


@pytest.mark.parametrize('normalization', H)
def test_kernels(normalization):
    query, key = random_maps((1, 3, 7, 5), (1, 3, 3, 2))
    scores = reference.affiliation_scores(query, key, 3)
    weights = scores.clone().apply_(H[normalization])
    total = weights.sum(1, keepdim=True) + (0 if normalization == 'softmax' else reference.EPS)
    kernels = reference.affiliation_kernels(query, key, 3, normalization)
    assert torch.allclose(kernels, weights / total, atol=1e-14)
    # The zero scores of keys outside the map take part: the first position's window has 5 of its 9 outside.
    assert torch.equal(scores[0, :3, 0, 0], torch.zeros(3, dtype=torch.float64))
    assert (kernels[0, :3, 0, 0] > 0).all() == (normalization != 'relu')


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize(('cells', 'size'), SIZES)
def test_assembly(cells, size, groups):
    kernel_size = 3
    feature, kernels = random_maps((2, 4, *cells), (2, groups * 9, *size))
    expected = torch.zeros(2, 4, *size, dtype=torch.float64)
    for y, x, tap, row, column in loop_windows(size, cells, kernel_size):
        if inside(row, column, cells):
            for channel in range(4):
                group = channel // (4 // groups)
                expected[:, channel, y, x] += kernels[:, group * 9 + tap, y, x] * feature[:, channel, row, column]
    assert torch.allclose(reference.feature_assembly(feature, kernels, kernel_size, groups), expected, atol=1e-13)


def test_point_affiliation_is_kernels_then_assembly():
    query, key, value = random_maps((2, 3, 7, 8), (2, 3, 3, 4), (2, 5, 3, 4))
    kernels = reference.affiliation_kernels(query, key, 5, 'softmax')
    expected = reference.feature_assembly(value, kernels, 5)
    assert torch.allclose(reference.point_affiliation(query, key, value, 5), expected, atol=1e-14)


def test_nearest_is_interpolate_for_exact_ratios_and_exact_for_others():
    (x,) = random_maps((1, 2, 3, 5))
    assert torch.equal(reference.nearest(x, (9, 10)), F.interpolate(x, size=(9, 10), mode='nearest'))
    for size in range(1, 80):
        for cells in range(1, 40):
            expected = [math.floor(p * cells / size) for p in range(size)]  # exact: the products are small integers
            assert reference.cell_of(size, cells).tolist() == expected
