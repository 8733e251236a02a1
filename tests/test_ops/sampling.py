# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the two deformable operators."""

import torch
from helpers import assert_close, random_maps

from sapa_mm.ops import deformable_assembly, deformable_scores
from sapa_mm.ops.maps import accumulation_dtype


def make_sampling_inputs(
    function, batch, channels, points, cells, size, groups=1, dtype=torch.float64, seed=0, **kwargs
):
    """Channels and points are those of a group; some points leave the map."""
    shapes = dict(
        high=(batch, groups * channels, *size),
        low=(batch, groups * channels, *cells),
        kernels=(batch, groups * points, *size),
        offset=(batch, groups * points * 2, *size),
    )
    names = ('high', 'low', 'offset') if function is deformable_scores else ('low', 'kernels', 'offset')
    inputs = random_maps(*(shapes[name] for name in names), seed=seed, **kwargs)
    # Of both signs, up to 3 positions, and off the lattice by more than a low dtype's rounding: on it the slope of a
    # sample has two sides.
    offset = inputs[2]
    inputs[2] = (
        (2 * offset).clamp(-3, 3).floor()
        + 0.1
        + 0.8 * torch.rand(offset.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(offset)
    )
    return [x.to(dtype) for x in inputs]


def compare_sampling(function, expected, inputs, groups):
    """As compare_with_reference, for results of another dtype than the inputs."""
    kernels = inputs[1] if function is deformable_assembly else None
    if kernels is not None and kernels.dtype in (torch.half, torch.bfloat16):
        inputs = [inputs[0], kernels.float(), inputs[2]]
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = expected(*exact, groups), function(*leaves, groups)
    dtype = inputs[0].dtype
    assert outputs[1].dtype == (dtype if function is deformable_assembly else accumulation_dtype(dtype))
    assert_close(outputs[1].detach().cpu(), outputs[0].detach(), outputs[1].dtype, 'output')
    (cotangent,) = random_maps(outputs[0].shape, dtype=dtype, seed=1)
    theirs = torch.autograd.grad(outputs[0], exact, cotangent.double())
    ours = torch.autograd.grad(outputs[1], leaves, cotangent.to(outputs[1]))
    for i, (a, e) in enumerate(zip(ours, theirs)):
        assert a.dtype == inputs[i].dtype
        assert_close(a.cpu(), e, a.dtype, f'gradient of input {i}')
