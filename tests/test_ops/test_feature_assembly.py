# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from helpers import (
    DEVICES,
    TOLERANCE,
    assert_same_bits_for_any_threads,
    assert_single_gradient,
    compare_with_reference,
    needs_native,
    random_maps,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sapa_mm.ops import feature_assembly, reference

FORMATS = [torch.contiguous_format, torch.channels_last]


def make_inputs(batch, channels, cells, size, kernel_size, groups=1, **kwargs):
    return random_maps((batch, channels, *cells), (batch, groups * kernel_size**2, *size), **kwargs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('groups', [1, 3])
@pytest.mark.parametrize(('cells', 'size'), [((6, 7), (12, 14)), ((6, 7), (11, 13)), ((6, 7), (3, 20))])
def test_matches_reference(cells, size, groups, dtype, memory_format, device):
    inputs = make_inputs(2, 39, cells, size, 5, groups, dtype=dtype, device=device)
    inputs = [x.to(memory_format=memory_format) for x in inputs]
    compare_with_reference(feature_assembly, reference.feature_assembly, inputs, 5, groups)
    assert feature_assembly(*inputs, 5, groups).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('device', DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    cells=st.tuples(st.integers(1, 40), st.integers(1, 110)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.integers(1, 40),
    groups=st.integers(1, 4),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    memory_format=st.sampled_from(FORMATS),
)
def test_any_size(cells, size, channels, groups, kernel_size, memory_format, device):
    inputs = make_inputs(1, channels * groups, cells, size, kernel_size, groups, dtype=torch.float32, device=device)
    inputs = [x.to(memory_format=memory_format) for x in inputs]
    compare_with_reference(feature_assembly, reference.feature_assembly, inputs, kernel_size, groups)


@pytest.mark.parametrize('which', range(2))
def test_non_contiguous_and_single_gradient(which):
    inputs = make_inputs(2, 4, (5, 4), (10, 9), 3, 2)
    inputs[which] = torch.stack([inputs[which]] * 2, dim=-1)[..., 1]
    compare_with_reference(feature_assembly, reference.feature_assembly, inputs, 3, 2)
    assert_single_gradient(feature_assembly, reference.feature_assembly, inputs, which, 3, 2)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs(1, 4, (2, 3), (5, 4), 3, 2)]
    assert torch.autograd.gradcheck(lambda *x: feature_assembly(*x, 3, 2), inputs)


@needs_native
@pytest.mark.parametrize('device', DEVICES)
def test_thread_counts_give_the_same_bits(device):
    inputs = make_inputs(2, 20, (33, 110), (70, 90), 5, dtype=torch.float32, device=device)
    assert_same_bits_for_any_threads(lambda *x: feature_assembly(*x, 5), inputs)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(kernel_size=2), ValueError, 'odd and between 1 and 15, got 2'),
        (dict(groups=3), ValueError, 'groups must divide.*got 3 groups and 4 channels'),
        (dict(groups=2.0), TypeError, 'groups must be an int, got float'),
        (dict(groups=2), ValueError, r'kernels must have groups \* kernel_size\*\*2 = 18 channels, got 9'),
        (dict(kernels=torch.zeros(1, 9, 4)), ValueError, 'kernels must have 4 dimensions'),
        (dict(kernels=torch.zeros(1, 9, 4, 4).half()), TypeError, 'one dtype'),
        (dict(feature=torch.zeros(1, 4, 0, 2)), ValueError, 'feature is empty'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(feature=torch.zeros(1, 4, 2, 2), kernels=torch.zeros(1, 9, 4, 4), kernel_size=3)
    with pytest.raises(error, match=match):
        feature_assembly(**{**arguments, **change})
