# SPDX-License-Identifier: Apache-2.0
"""Borders and heads of the two operators with windows, against the reference; test_reference.py holds that one."""

import pytest
import torch
from helpers import (
    DEVICES,
    TOLERANCE,
    assert_same_bits_for_any_threads,
    compare_with_reference,
    needs_native,
    random_maps,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sapa_mm.ops import affiliation_kernels, feature_assembly, point_affiliation, reference
from sapa_mm.ops.borders import BORDERS, GIVEN, SHIFT, extend
from sapa_mm.ops.checks import NORMALIZATIONS

FORMATS = [torch.contiguous_format, torch.channels_last]


def affiliation_maps(embed_dims, channels, cells, size, **kwargs):
    return random_maps((2, embed_dims, *size), (2, embed_dims, *cells), (2, channels, *cells), **kwargs)


def compare_both(cells, size, kernel_size, border, heads, memory_format=torch.contiguous_format, **kwargs):
    maps = affiliation_maps(3 * heads, 5 * heads, cells, size, **kwargs)
    inputs = [(x / 4).contiguous(memory_format=memory_format) for x in maps]
    options = (kernel_size, 'softmax', border, heads)
    compare_with_reference(point_affiliation, reference.point_affiliation, inputs, *options)
    inputs = [inputs[2], *random_maps((2, heads * kernel_size**2, *size), **kwargs)]
    options = (kernel_size, heads, border)
    compare_with_reference(feature_assembly, reference.feature_assembly, inputs, *options)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('heads', [1, 2])
@pytest.mark.parametrize('border', BORDERS)
def test_matches_reference(border, heads, dtype, device):
    compare_both((6, 7), (12, 14), 3, border, heads, dtype=dtype, device=device)
    compare_both((6, 7), (11, 13), 5, border, heads, torch.channels_last, dtype=dtype, device=device)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('heads', [1, 2])
@pytest.mark.parametrize('border', BORDERS)
def test_layout_is_that_of_the_value(border, heads, memory_format):
    query, key, value = (x.contiguous(memory_format=memory_format) for x in affiliation_maps(4, 6, (4, 5), (8, 9)))
    assert point_affiliation(query, key, value, 3, 'softmax', border, heads).is_contiguous(memory_format=memory_format)
    kernels = affiliation_kernels(query, key, 3, 'softmax', border, heads)
    assert feature_assembly(value, kernels, 3, heads, border).is_contiguous(memory_format=memory_format)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cells=st.tuples(st.integers(1, 30), st.integers(1, 110)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    kernel_size=st.sampled_from([1, 3, 5, 9]),
    border=st.sampled_from(BORDERS),
    heads=st.integers(1, 3),
    memory_format=st.sampled_from(FORMATS),
)
def test_any_size(cells, size, kernel_size, border, heads, memory_format):
    compare_both(cells, size, kernel_size, border, heads, memory_format)


def test_reflect_is_torch_s_and_goes_on_where_that_ends():
    (x,) = random_maps((1, 1, 4, 5))
    assert torch.equal(extend(x, 3, 'reflect'), F.pad(x, (3,) * 4, mode='reflect'))
    assert extend(x[:, :, :2, :1], 3, 'reflect')[0, 0, :, 0].tolist() == x[0, 0, [1, 0, 1, 0, 1, 0, 1, 0], 0].tolist()
    assert torch.equal(extend(x, 7, 'replicate'), F.pad(x, (7,) * 4, mode='replicate'))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_keys_outside_take_no_part(normalization, device):
    for border in ('clip', 'shift'):
        inputs = affiliation_maps(3, 5, (2, 6), (5, 12), device=device)
        options = (3, normalization, border)
        compare_with_reference(point_affiliation, reference.point_affiliation, inputs, *options)
        query, key, _ = inputs
        mixed = point_affiliation(query, key, torch.ones_like(key[:, :1]), *options)
        outside = reference.EPS if normalization != 'softmax' else 0  # what the weights lack of 1
        kernels = affiliation_kernels(query, key, *options).sum(1, keepdim=True)
        torch.testing.assert_close(mixed, kernels)
        if normalization == 'softplus':
            assert (1 - mixed < outside * 10).all()


@pytest.mark.parametrize('border', BORDERS)
def test_gradcheck(border):
    inputs = [x.requires_grad_() for x in random_maps((1, 2, 5, 4), (1, 2, 2, 3), (1, 2, 2, 3))]
    assert torch.autograd.gradcheck(lambda *x: point_affiliation(*x, 3, 'softmax', border, 2), inputs)


@needs_native
@pytest.mark.parametrize('border', BORDERS)
def test_thread_counts_give_the_same_bits(border):
    inputs = [x.requires_grad_() for x in affiliation_maps(8, 12, (23, 110), (46, 150), dtype=torch.float32)]
    assert_same_bits_for_any_threads(lambda *x: point_affiliation(*x, 5, 'softmax', border, 2), inputs)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('border', BORDERS)
def test_non_finite_values_stay_in_their_windows(border, bad):
    query, key, value = affiliation_maps(2, 3, (6, 9), (12, 18))
    value[:, :, 2, 8] = bad
    finite = point_affiliation(query, key, value, 3, border=border).isfinite()
    assert torch.equal(finite, reference.point_affiliation(query, key, value, 3, border=border).isfinite())
    assert finite.any() and not finite.all()


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(border='wrap'), ValueError, r"border must be one of \('zero', .*got 'wrap'"),
        (dict(heads=0), ValueError, 'heads must divide the number of channels, got 0 heads and 6 channels'),
        (dict(heads=6), ValueError, 'heads must divide the number of channels, got 6 heads and 4 channels'),
        (dict(heads=True), TypeError, 'heads must be an int, got bool'),
        (dict(kernel_size=17), ValueError, 'odd and between 1 and 15, got 17'),
    ],
)
def test_bad_input(change, error, match):
    maps = affiliation_maps(6, 4, (2, 3), (4, 6))
    with pytest.raises(error, match=match):
        point_affiliation(*maps, **change)


def test_bad_border_of_assembly():
    with pytest.raises(ValueError, match="border must be one of .*got 'wrap'"):
        feature_assembly(torch.zeros(1, 2, 3, 3), torch.zeros(1, 9, 6, 6), 3, border='wrap')


@needs_native
@pytest.mark.parametrize('border', [GIVEN, SHIFT])
def test_compiled_operators_ask_for_a_whole_window(border):
    query, key, value = affiliation_maps(2, 3, (4, 6), (8, 12))
    with pytest.raises(ValueError, match='key must have at least kernel_size = 5 rows and columns'):
        torch.ops.sapa_mm.point_affiliation(query, key, value, 5, 0, border)
    with pytest.raises(ValueError, match='border must be 0 to 2, got 3'):
        torch.ops.sapa_mm.feature_assembly(value, torch.zeros(2, 9, 8, 12).double(), 3, 1, 3)
