# SPDX-License-Identifier: Apache-2.0
"""One rule of autocast for all operators, compiled or not."""

import pytest
import torch
from cases import CASES, inputs_of
from helpers import DEVICES, LOW_DTYPES, assert_close, needs_native, random_maps

from sapa_mm import ops
from sapa_mm.ops import library, reference


def call(function, name, inputs):
    named = dict(point_affiliation=('softmax', 'zero'), feature_assembly=('zero',)).get(name, ())  # numbers inside
    options = CASES[name][1]
    return function(*inputs, *options[: len(options) - len(named)], *named)


def run(name, inputs, dtype):
    device = inputs[0].device.type
    with torch.autocast(device, dtype=dtype):
        output = call(getattr(ops, name), name, inputs)
    (cotangent,) = random_maps(output.shape, dtype=output.dtype, device=device, seed=1)
    return output, torch.autograd.grad(output, inputs, cotangent), cotangent


@needs_native
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', LOW_DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_native_and_fallback_agree(name, dtype, device):
    """With the maps in the dtype of autocast, the parameters of a norm in their own, the gradients in their inputs'."""
    inputs = [(3 * x + 1).detach().requires_grad_() for x in inputs_of(name, device=device)]
    native, native_grads, cotangent = run(name, inputs, dtype)
    with library.prefer('reference'):
        fallback, fallback_grads, _ = run(name, inputs, dtype)
    exact = [(x.to(dtype) if x.dim() == 4 else x).detach().double().requires_grad_() for x in inputs]
    expected = call(getattr(reference, name), name, exact)
    expected_grads = torch.autograd.grad(expected, exact, cotangent.double())
    assert native.dtype == fallback.dtype == (torch.float32 if name == 'deformable_scores' else dtype)
    for what, output, grads in (('native', native, native_grads), ('fallback', fallback, fallback_grads)):
        assert_close(output.detach(), expected.detach(), output.dtype, what)
        for x, grad, e in zip(inputs, grads, expected_grads):
            assert grad.dtype == torch.float32
            assert_close(grad, e, dtype if x.dim() == 4 else torch.float32, f'{what}, gradient')


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', CASES)
def test_float64_stays(name, device):
    inputs = inputs_of(name, dtype=torch.float64, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert call(getattr(ops, name), name, inputs).dtype == torch.float64
