# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from helpers import (
    DEVICES,
    TOLERANCE,
    assert_close,
    assert_same_bits_for_any_threads,
    assert_single_gradient,
    compare_with_reference,
    needs_native,
    random_maps,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sapa_mm.ops import channel_norm, reference


def make_inputs(shape, dtype=torch.float64, device='cpu'):
    """A map whose mean and deviation are far from 0 and 1, weight and bias."""
    x, weight, bias = random_maps(shape, shape[1:2], shape[1:2], device=device)
    return [t.to(dtype) for t in (3 * x + 2, weight, bias)]


def test_definition():
    x, weight, bias = make_inputs((2, 5, 3, 4))
    centred = x - x.mean(1, keepdim=True)
    expected = (
        centred / (centred.square().mean(1, keepdim=True) + 0.1).sqrt() * weight[:, None, None] + bias[:, None, None]
    )
    for function in (channel_norm, reference.channel_norm):
        torch.testing.assert_close(function(x, weight, bias, 0.1), expected)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', [(2, 7, 9, 31), (1, 64, 16, 16), (3, 1, 2, 2), (1, 5, 1, 1)])
def test_matches_reference(shape, dtype, device):
    compare_with_reference(channel_norm, reference.channel_norm, make_inputs(shape, dtype, device), 0.1)
    inputs = make_inputs(shape, dtype, device)[:1]
    compare_with_reference(channel_norm, reference.channel_norm, inputs, None, None, 0.1)


@pytest.mark.parametrize('device', DEVICES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 300),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels_last=st.booleans(),
)
def test_any_size(batch, channels, size, channels_last, device):
    inputs = make_inputs((batch, channels, *size), device=device)
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    compare_with_reference(channel_norm, reference.channel_norm, inputs, 0.1)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_parameters_of_another_dtype(dtype):
    """As in autocast: a map in a low dtype, parameters in float32."""
    x, weight, bias = make_inputs((1, 6, 4, 5), torch.float32)
    leaves = [x.to(dtype).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    output = channel_norm(*leaves)
    assert output.dtype == dtype
    assert_close(output.detach(), reference.channel_norm(leaves[0].double(), weight.double(), bias.double()), dtype)
    grads = torch.autograd.grad(output.sum(), leaves)
    assert [g.dtype for g in grads] == [x.dtype for x in leaves]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_result_has_the_layout_of_the_map(memory_format):
    x, *parameters = make_inputs((2, 4, 3, 5))
    x = x.contiguous(memory_format=memory_format)
    for function in (channel_norm, reference.channel_norm):
        assert function(x, *parameters).is_contiguous(memory_format=memory_format)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs((2, 3, 4, 2))]
    assert torch.autograd.gradcheck(channel_norm, inputs)


@pytest.mark.parametrize('which', range(3))
def test_single_gradient(which):
    assert_single_gradient(channel_norm, reference.channel_norm, make_inputs((2, 4, 3, 5)), which)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('shape', [(0, 4, 3, 2), (2, 4, 0, 2)])
def test_empty(shape, device):
    leaves = [x.requires_grad_() for x in make_inputs(shape, device=device)]
    output = channel_norm(*leaves)
    output.sum().backward()
    assert output.shape == shape and not any(x.grad.any() for x in leaves)


@needs_native
def test_thread_counts_give_the_same_bits():
    inputs = [x.requires_grad_() for x in make_inputs((3, 40, 33, 50), torch.float32)]
    assert_same_bits_for_any_threads(channel_norm, inputs)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(x=torch.zeros(4, 2, 2)), ValueError, 'x must have 4 dimensions'),
        (dict(x=torch.zeros(1, 4, 2, 2).int()), TypeError, 'x must be floating point, got torch.int32'),
        (dict(weight=torch.zeros(5)), ValueError, r'weight .* each of the 4 channels of x, got shape \(5,\)'),
        (dict(bias=torch.zeros(4, 1)), ValueError, r'bias .* each of the 4 channels of x, got shape \(4, 1\)'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(x=torch.zeros(1, 4, 2, 2), weight=torch.ones(4), bias=torch.zeros(4))
    with pytest.raises(error, match=match):
        channel_norm(**{**arguments, **change})
