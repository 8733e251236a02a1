# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from helpers import (
    DEVICES,
    TOLERANCE,
    assert_close,
    assert_same_bits_for_any_threads,
    compare_with_reference,
    needs_native,
    random_maps,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sapa_mm.ops import channel_norm, norm_projection, reference


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


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 300),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels_last=st.booleans(),
)
def test_any_size(batch, channels, size, channels_last):
    inputs = make_inputs((batch, channels, *size))
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


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs((2, 3, 4, 2))]
    assert torch.autograd.gradcheck(channel_norm, inputs)


@pytest.mark.parametrize('which', range(3))
def test_single_gradient(which):
    inputs = make_inputs((2, 4, 3, 5))
    leaves = [x.requires_grad_(i == which) for i, x in enumerate(inputs)]
    channel_norm(*leaves).square().sum().backward()
    assert [x.grad is not None for x in leaves] == [i == which for i in range(3)]


@pytest.mark.parametrize('shape', [(0, 4, 3, 2), (2, 4, 0, 2)])
def test_empty(shape):
    leaves = [x.requires_grad_() for x in make_inputs(shape)]
    output = channel_norm(*leaves)
    output.sum().backward()
    assert output.shape == shape and not any(x.grad.any() for x in leaves)


@needs_native
def test_opcheck_and_double_backward():
    inputs = [x.requires_grad_() for x in make_inputs((1, 4, 3, 4), torch.float32)]
    torch.library.opcheck(torch.ops.sapa_mm.channel_norm.default, (*inputs, 1e-5))
    torch.library.opcheck(torch.ops.sapa_mm.channel_norm.default, (inputs[0], None, None, 1e-5))
    grads = torch.autograd.grad(channel_norm(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative'):
        grads[0].sum().backward()


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


def make_projection(shape, rows, dtype=torch.float64, device='cpu'):
    x, matrix, shift = random_maps(shape, (rows, shape[1]), (rows,), device=device)
    parameters = reference.accumulation_dtype(dtype)
    return [(3 * x + 2).to(dtype), matrix.to(parameters), shift.to(parameters)]


def test_projection_of_a_norm_with_parameters():
    x, weight, bias = make_inputs((2, 5, 3, 4))
    matrix, shift = random_maps((3, 5), (3,), seed=1)
    expected = torch.einsum('dc,nchw->ndhw', matrix, channel_norm(x, weight, bias, 0.1)) + shift[:, None, None]
    for function in (norm_projection, reference.norm_projection):
        torch.testing.assert_close(function(x, matrix * weight, matrix @ bias + shift, 0.1), expected)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(
    'shape, rows', [((2, 7, 9, 31), 33), ((1, 64, 16, 16), 8), ((3, 2, 2, 2), 1), ((1, 5, 1, 1), 3)]
)
def test_projection_matches_reference(shape, rows, dtype, device):
    inputs = make_projection(shape, rows, dtype, device)
    leaves, exact = ([x.detach().requires_grad_() for x in t] for t in (inputs, [x.double().cpu() for x in inputs]))
    output, expected = norm_projection(*leaves, 0.1), reference.norm_projection(*exact, 0.1)
    assert output.dtype == dtype
    assert_close(output.detach().cpu(), expected.detach(), dtype, 'output')
    (cotangent,) = random_maps(output.shape, dtype=dtype, seed=1)
    theirs = torch.autograd.grad(expected, exact, cotangent.double())
    for name, a, e in zip(('x', 'matrix', 'shift'), torch.autograd.grad(output, leaves, cotangent.to(device)), theirs):
        assert_close(a.cpu(), e, a.dtype, f'gradient of {name}')


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 300),
    rows=st.integers(1, 70),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels_last=st.booleans(),
)
def test_projection_of_any_size(batch, channels, rows, size, channels_last):
    inputs = make_projection((batch, channels, *size), rows)
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    compare_with_reference(norm_projection, reference.norm_projection, inputs, 0.1)


@pytest.mark.parametrize('which', range(3))
def test_projection_single_gradient(which):
    leaves = [x.requires_grad_(i == which) for i, x in enumerate(make_projection((2, 4, 3, 5), 3))]
    norm_projection(*leaves).square().sum().backward()
    assert [x.grad is not None for x in leaves] == [i == which for i in range(3)]


def test_projection_gradcheck():
    inputs = [x.requires_grad_() for x in make_projection((2, 3, 4, 2), 3)]
    assert torch.autograd.gradcheck(norm_projection, inputs)


@pytest.mark.parametrize('shape', [(0, 4, 3, 2), (2, 4, 0, 2)])
def test_projection_of_nothing(shape):
    leaves = [x.requires_grad_() for x in make_projection(shape, 3)]
    output = norm_projection(*leaves)
    output.sum().backward()
    assert output.shape == (shape[0], 3, *shape[2:]) and not any(x.grad.any() for x in leaves)


@needs_native
def test_projection_opcheck_and_double_backward():
    inputs = [x.requires_grad_() for x in make_projection((1, 4, 3, 4), 3, torch.float32)]
    torch.library.opcheck(torch.ops.sapa_mm.norm_projection.default, (*inputs, 1e-5))
    grads = torch.autograd.grad(norm_projection(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative'):
        grads[0].sum().backward()


@needs_native
def test_projection_with_any_number_of_threads_gives_the_same_bits():
    inputs = [x.requires_grad_() for x in make_projection((3, 40, 33, 50), 12, torch.float32)]
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
def test_bad_projection_input(change, error, match):
    arguments = dict(x=torch.zeros(1, 4, 2, 2), matrix=torch.ones(3, 4), shift=torch.zeros(3))
    with pytest.raises(error, match=match):
        norm_projection(**{**arguments, **change})
