# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the operators, which need only torch, pytest and hypothesis."""

import pytest
import torch

from sapa_mm.ops import backend

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')),
]
needs_native = pytest.mark.skipif(backend() != 'native', reason='the compiled operators are not there')

#: Of autocast on the CPU: before torch 2.4 it knew bfloat16 only
LOW_DTYPES = [torch.bfloat16, torch.float16] if hasattr(torch, 'get_autocast_dtype') else [torch.bfloat16]

#: Largest error over largest value, against float64: a few roundings of the result, and of the sums behind it.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def random_maps(*shapes, dtype=torch.float64, device='cpu', seed=0):
    """Normal maps that ``dtype`` holds exactly, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device) for shape in shapes]


def assert_close(actual, expected, dtype, what=''):
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=0.1)
    assert error <= TOLERANCE[dtype], f'{what}: off by {error:.1e} of the largest value'


def forward_and_gradients(function, inputs, cotangent):
    """Output and input gradients of ``function`` at fresh leaves of ``inputs`` (strides kept)."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return output.detach(), torch.autograd.grad(output, leaves, cotangent)


def compare_with_reference(function, reference, inputs, *options, gradients=True):
    """Hold output and, unless told not to, gradients of ``function`` against ``reference`` in float64 on the CPU."""
    dtype = inputs[0].dtype
    exact = [x.detach().double().cpu() for x in inputs]
    output = reference(*exact, *options)
    (cotangent,) = random_maps(output.shape, dtype=dtype, seed=1)
    expected = forward_and_gradients(lambda *x: reference(*x, *options), exact, cotangent.double())
    actual = forward_and_gradients(lambda *x: function(*x, *options), inputs, cotangent.to(inputs[0].device))
    assert actual[0].dtype == dtype
    assert_close(actual[0].cpu(), expected[0], dtype, 'output')
    for i, (a, e) in enumerate(zip(actual[1], expected[1]) if gradients else ()):
        assert_close(a.cpu(), e, dtype, f'gradient of input {i}')


def assert_single_gradient(function, reference, inputs, which, *options):
    """With one input that requires a gradient it alone gets one: that of ``reference`` in float64, up to rounding."""
    leaves = [x.detach().requires_grad_(i == which) for i, x in enumerate(inputs)]
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    output, expected = function(*leaves, *options), reference(*exact, *options)
    (cotangent,) = random_maps(output.shape, dtype=output.dtype, seed=1)
    output.backward(cotangent.to(output.device))
    assert [x.grad is not None for x in leaves] == [i == which for i in range(len(leaves))]
    (wanted,) = torch.autograd.grad(expected, exact[which], cotangent.double())
    assert wanted.any()
    assert_close(leaves[which].grad.cpu(), wanted, inputs[which].dtype, f'gradient of input {which} alone')


def assert_same_bits_for_any_threads(function, inputs):
    """Output and gradients of ``function`` repeat bit for bit, whatever the number of threads."""
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            output = function(*inputs)
            (cotangent,) = random_maps(output.shape, dtype=output.dtype, device=output.device, seed=1)
            results.append(forward_and_gradients(function, inputs, cotangent))
    finally:
        torch.set_num_threads(threads)
    for output, gradients in results[1:]:
        assert torch.equal(output, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1]))
