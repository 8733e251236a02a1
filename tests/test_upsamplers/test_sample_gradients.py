# SPDX-License-Identifier: Apache-2.0
"""Gradients of every sample by ``torch.func``, for every published variant."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from upsampler_helpers import randomize

from sapa_mm.registry import MODELS
from sapa_mm.upsamplers import UPSAMPLERS, VARIANTS

CHANNELS = 32
CASES = {
    **VARIANTS,
    # whose gradients pass through more than the default has
    'ReSFU, scaled': dict(type='sapa_mm.ReSFU', lr_mult=500),
    'SAPA-D, normalised': dict(type='sapa_mm.SAPADeform', norm='layer'),
}

from_torch_2_5 = pytest.mark.skipif(
    not hasattr(torch.library, 'register_vmap'),
    reason='before torch 2.5 torch runs one sample after the other, and not all',
)


@from_torch_2_5
@pytest.mark.parametrize('name', CASES)
def test_gradients_of_every_sample(name):
    """Of both maps and all parameters, at a ratio that is not whole; against a loop."""
    module = randomize(MODELS.build(dict(CASES[name], in_channels=CHANNELS)), std=0.1)
    parameters = {key: parameter.detach() for key, parameter in module.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(2, CHANNELS, *size, generator=generator, dtype=torch.float64) for size in ((3, 4), (5, 8))]

    def loss(parameters, feature, guide):
        output = functional_call(module, parameters, (feature[None], guide[None]))
        return (output * torch.arange(output.numel(), dtype=output.dtype).view_as(output).cos()).sum()

    of_parameters, *of_maps = vmap(grad(loss, (0, 1, 2)), (None, 0, 0))(parameters, *samples)
    for n in range(2):
        leaves = {key: parameter.clone().requires_grad_() for key, parameter in parameters.items()}
        inputs = [x[n].clone().requires_grad_() for x in samples]
        everything = [*leaves.values(), *inputs]
        expected = torch.autograd.grad(loss(leaves, *inputs), everything, materialize_grads=True)
        found = [x[n] for x in (*of_parameters.values(), *of_maps)]
        torch.testing.assert_close(found, list(expected), rtol=1e-9, atol=1e-10)


def test_all_upsamplers_are_here():
    assert {cfg['type'].removeprefix('sapa_mm.') for cfg in CASES.values()} == set(UPSAMPLERS)
