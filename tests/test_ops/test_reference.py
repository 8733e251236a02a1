# SPDX-License-Identifier: Apache-2.0
"""The reference against nested loops that follow the definition word by word."""

import math

import pytest
import torch
from helpers import random_maps

from sapa_mm.ops import reference
from sapa_mm.ops.borders import BORDERS

H = dict(
    softmax=math.exp,
    relu=lambda s: max(s, 0.0),
    sigmoid=lambda s: 1 / (1 + math.exp(-s)),
    softplus=lambda s: math.log1p(math.exp(s)),
)
SIZES = [((3, 4), (6, 8)), ((3, 4), (7, 9)), ((5, 3), (5, 3)), ((2, 2), (7, 5)), ((5, 7), (3, 4)), ((1, 1), (3, 2))]


def loop_windows(size, cells, kernel_size, border='zero'):
    """(y, x, tap, cell row, cell column) of every output position and tap; the cell may lie outside the map."""
    for y in range(size[0]):
        for x in range(size[1]):
            row, column = math.floor(y * cells[0] / size[0]), math.floor(x * cells[1] / size[1])
            for ky in range(kernel_size):
                for kx in range(kernel_size):
                    found = (
                        find(row, ky, cells[0], kernel_size, border),
                        find(column, kx, cells[1], kernel_size, border),
                    )
                    yield y, x, ky * kernel_size + kx, *found


def find(cell, tap, size, kernel_size, border):
    """Where on an axis the tap of a window is; it may be outside."""
    place = cell - kernel_size // 2 + tap
    if border == 'shift':
        return min(max(cell - kernel_size // 2, 0), max(size - kernel_size, 0)) + tap
    if border == 'replicate':
        return min(max(place, 0), size - 1)
    while border == 'reflect' and not 0 <= place < size:
        place = 0 if size == 1 else -place if place < 0 else 2 * (size - 1) - place
    return place


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


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize(('cells', 'size'), SIZES)
def test_borders(cells, size, border):
    kernel_size = 5
    query, key, kernels = random_maps((2, 3, *size), (2, 3, *cells), (2, kernel_size**2, *size))
    nothing = -math.inf if border in ('clip', 'shift') else 0.0
    scores = torch.full((2, kernel_size**2, *size), nothing, dtype=torch.float64)
    mixed = torch.zeros_like(query)
    for y, x, tap, row, column in loop_windows(size, cells, kernel_size, border):
        if inside(row, column, cells):
            scores[:, tap, y, x] = (query[:, :, y, x] * key[:, :, row, column]).sum(1)
            mixed[:, :, y, x] += kernels[:, tap, y, x, None] * key[:, :, row, column]
    assert torch.allclose(reference.affiliation_scores(query, key, kernel_size, border), scores, atol=1e-13)
    assert torch.allclose(reference.feature_assembly(key, kernels, kernel_size, border=border), mixed, atol=1e-13)


def test_heads_are_affiliations_side_by_side():
    query, key, value = random_maps((2, 6, 7, 8), (2, 6, 3, 4), (2, 4, 3, 4))
    parts = [reference.point_affiliation(*x, 3) for x in zip(*(x.chunk(2, 1) for x in (query, key, value)))]
    torch.testing.assert_close(reference.point_affiliation(query, key, value, 3, heads=2), torch.cat(parts, 1))
    kernels = [reference.affiliation_kernels(*x, 3) for x in zip(*(x.chunk(2, 1) for x in (query, key)))]
    torch.testing.assert_close(reference.affiliation_kernels(query, key, 3, heads=2), torch.cat(kernels, 1))


def test_windows_of_any_size():
    query, key, value = random_maps((1, 2, 4, 6), (1, 2, 2, 3), (1, 3, 2, 3))
    whole = reference.point_affiliation(query, key, value, 17, border='shift')  # larger than the map: all of it
    weights = torch.einsum('nchw,ncyx->nhwyx', query, key).flatten(3).softmax(3)
    torch.testing.assert_close(whole, torch.einsum('nhwp,ncp->nchw', weights, value.flatten(2)))


def test_point_affiliation_is_kernels_then_assembly():
    query, key, value = random_maps((2, 3, 7, 8), (2, 3, 3, 4), (2, 5, 3, 4))
    kernels = reference.affiliation_kernels(query, key, 5, 'softmax')
    expected = reference.feature_assembly(value, kernels, 5)
    assert torch.allclose(reference.point_affiliation(query, key, value, 5), expected, atol=1e-14)


def loop_sample(x, row, column):
    """Bilinear sample of ``(C, h, w)``; each of the four taps counts if it is inside."""
    out = torch.zeros(x.shape[0], dtype=x.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if inside(r, c, x.shape[1:]):
                out += (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return out


@pytest.mark.parametrize(('cells', 'size'), SIZES)
def test_deformable_sampling(cells, size):
    groups, points = 2, 3
    query, key, offset, kernels = random_maps(
        (2, 2 * groups, *size), (2, 2 * groups, *cells), (2, groups * points * 2, *size), (2, groups * points, *size)
    )
    offset *= 2
    scores, assembled = torch.zeros_like(kernels), torch.zeros_like(query)
    for n in range(2):
        for y in range(size[0]):
            for x in range(size[1]):
                for point in range(groups * points):
                    channels = slice(point // points * 2, point // points * 2 + 2)
                    row = math.floor(y * cells[0] / size[0]) + offset[n, 2 * point + 1, y, x].item()
                    column = math.floor(x * cells[1] / size[1]) + offset[n, 2 * point, y, x].item()
                    sample = loop_sample(key[n, channels], row, column)
                    scores[n, point, y, x] = query[n, channels, y, x] @ sample
                    assembled[n, channels, y, x] += kernels[n, point, y, x] * sample
    assert torch.allclose(reference.deformable_scores(query, key, offset, groups), scores, atol=1e-12)
    assert torch.allclose(reference.deformable_assembly(key, kernels, offset, groups), assembled, atol=1e-12)
