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

from sapa_mm.ops import channel_norm, norm_projection, reference
from sapa_mm.ops.maps import accumulation_dtype


def make_inputs(shape, rows, dtype=torch.float64, device='cpu'):
    x, matrix, shift = random_maps(shape, (rows, shape[1]), (rows,), device=device)
    parameters = accumulation_dtype(dtype)
    return [(3 * x + 2).to(dtype), matrix.to(parameters), shift.to(parameters)]


def test_definition():
    x, matrix, shift = make_inputs((2, 5, 3, 4), 3)
    centred = x - x.mean(1, keepdim=True)
    normalised = centred / (centred.square().mean(1, keepdim=True) + 0.1).sqrt()
    expected = torch.einsum('dc,nchw->ndhw', matrix, normalised) + shift[:, None, None]
    for function in (norm_projection, reference.norm_projection):
        torch.testing.assert_close(function(x, matrix, shift, 0.1), expected, rtol=1e-12, atol=1e-12)


def test_norm_with_parameters():
    x, matrix, shift = make_inputs((2, 5, 3, 4), 3)
    weight, bias = random_maps((5,), (5,), seed=1)
    expected = torch.einsum('dc,nchw->ndhw', matrix, channel_norm(x, weight, bias, 0.1)) + shift[:, None, None]
    torch.testing.assert_close(norm_projection(x, matrix * weight, matrix @ bias + shift, 0.1), expected)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(
    'shape, rows', [((2, 7, 9, 31), 33), ((1, 64, 16, 16), 8), ((3, 2, 2, 2), 1), ((1, 5, 1, 1), 3)]
)
def test_matches_reference(shape, rows, dtype, device):
    inputs = make_inputs(shape, rows, dtype, device)
    leaves, exact = ([x.detach().requires_grad_() for x in t] for t in (inputs, [x.double().cpu() for x in inputs]))
    output, expected = norm_projection(*leaves, 0.1), reference.norm_projection(*exact, 0.1)
    assert output.dtype == dtype
    assert_close(output.detach().cpu(), expected.detach(), dtype, 'output')
    (cotangent,) = random_maps(output.shape, dtype=dtype, seed=1)
    theirs = torch.autograd.grad(expected, exact, cotangent.double())
    for name, a, e in zip(('x', 'matrix', 'shift'), torch.autograd.grad(output, leaves, cotangent.to(device)), theirs):
        assert_close(a.cpu(), e, a.dtype, f'gradient of {name}')


@pytest.mark.parametrize('device', DEVICES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 300),
    rows=st.integers(1, 70),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels_last=st.booleans(),
)
def test_any_size(batch, channels, rows, size, channels_last, device):
    inputs = make_inputs((batch, channels, *size), rows, device=device)
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    compare_with_reference(norm_projection, reference.norm_projection, inputs, 0.1)


@pytest.mark.parametrize('which', range(3))
def test_single_gradient(which):
    assert_single_gradient(norm_projection, reference.norm_projection, make_inputs((2, 4, 3, 5), 3), which)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs((2, 3, 4, 2), 3)]
    assert torch.autograd.gradcheck(norm_projection, inputs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('function', [norm_projection, reference.norm_projection], ids=['public', 'reference'])
@pytest.mark.parametrize(('shape', 'rows'), [((0, 4, 3, 2), 3), ((2, 4, 0, 2), 3), ((2, 4, 3, 2), 0)])
def test_empty(shape, rows, function, device):
    leaves = [x.requires_grad_() for x in make_inputs(shape, rows, device=device)]
    output = function(*leaves)
    output.sum().backward()
    assert output.shape == (shape[0], rows, *shape[2:]) and not any(x.grad.any() for x in leaves)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_result_has_the_layout_of_the_map(memory_format):
    x, *parameters = make_inputs((2, 4, 3, 5), 3)
    x = x.contiguous(memory_format=memory_format)
    for function in (norm_projection, reference.norm_projection):
        assert function(x, *parameters).is_contiguous(memory_format=memory_format)


@needs_native
def test_thread_counts_give_the_same_bits():
    inputs = [x.requires_grad_() for x in make_inputs((3, 40, 33, 50), 12, torch.float32)]
    assert_same_bits_for_any_threads(norm_projection, inputs)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(x=torch.zeros(4, 2, 2)), ValueError, 'x must have 4 dimensions'),
        (dict(matrix=torch.zeros(3, 5)), ValueError, r'matrix .* of the 4 channels of x, got shape \(3, 5\)'),
        (dict(matrix=torch.zeros(3, 4).half()), TypeError, 'must have dtype torch.float32 .* got torch.float16 and'),
        (dict(shift=torch.zeros(4)), ValueError, r'shift .* each of the 3 rows of matrix, got shape \(4,\)'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(x=torch.zeros(1, 4, 2, 2), matrix=torch.ones(3, 4), shift=torch.zeros(3))
    with pytest.raises(error, match=match):
        norm_projection(**{**arguments, **change})
