# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the two deformable operators."""

import pytest
import torch
from helpers import (
    DEVICES,
    TOLERANCE,
    assert_close,
    assert_same_bits_for_any_threads,
    assert_single_gradient,
    needs_native,
    random_maps,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


FORMATS = [torch.contiguous_format, torch.channels_last]


class SamplingTests:
    """``function`` and ``expected``: the operator and its reference. ``layout``: of the result, where it is fixed."""

    layout = None

    def make_inputs(self, *args, **kwargs):
        return make_sampling_inputs(self.function, *args, **kwargs)

    def compare(self, inputs, groups):
        compare_sampling(self.function, self.expected, inputs, groups)

    @pytest.mark.parametrize('device', DEVICES)
    @pytest.mark.parametrize('memory_format', FORMATS)
    @pytest.mark.parametrize('dtype', TOLERANCE)
    @pytest.mark.parametrize('groups', [1, 3])
    @pytest.mark.parametrize(
        ('cells', 'size'), [((6, 7), (12, 14)), ((6, 7), (11, 13)), ((6, 7), (3, 70)), ((1, 1), (2, 3))]
    )
    def test_matches_reference(self, cells, size, groups, dtype, memory_format, device):
        inputs = self.make_inputs(2, 19, 5, cells, size, groups, dtype, device=device)
        inputs = [x.to(memory_format=memory_format) for x in inputs]
        self.compare(inputs, groups)
        assert self.function(*[x.detach() for x in inputs], groups).is_contiguous(
            memory_format=self.layout or memory_format
        )

    @pytest.mark.parametrize('device', DEVICES)
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        cells=st.tuples(st.integers(1, 70), st.integers(1, 140)),
        size=st.tuples(st.integers(1, 70), st.integers(1, 140)),
        channels=st.integers(1, 70),
        points=st.integers(1, 12),
        groups=st.integers(1, 4),
        memory_format=st.sampled_from(FORMATS),
    )
    def test_any_size(self, cells, size, channels, points, groups, memory_format, device):
        inputs = self.make_inputs(1, channels, points, cells, size, groups, torch.float64, device=device)
        self.compare([x.to(memory_format=memory_format) for x in inputs], groups)

    @pytest.mark.parametrize('which', range(3))
    def test_non_contiguous_and_single_gradient(self, which):
        inputs = self.make_inputs(2, 4, 3, (5, 4), (10, 9), 2)
        inputs[which] = torch.stack([inputs[which]] * 2, dim=-1)[..., 1]
        self.compare(inputs, 2)
        assert_single_gradient(self.function, self.expected, inputs, which, 2)

    @pytest.mark.parametrize('device', DEVICES)
    def test_far_outside_is_zero_and_still(self, device):
        """Nothing is sampled there, and moving a point changes nothing."""
        inputs = self.make_inputs(1, 4, 2, (3, 4), (6, 8), dtype=torch.float32, device=device)
        inputs[2] = torch.full_like(inputs[2], 1e9)
        inputs[2][:, 1] = -torch.inf
        leaves = [x.requires_grad_() for x in inputs]
        output = self.function(*leaves)
        assert not output.any()
        assert not any(x.any() for x in torch.autograd.grad(output.sum(), leaves))

    @needs_native
    @pytest.mark.parametrize('device', DEVICES)
    def test_not_a_number_stays_in_its_place(self, device):
        """A diverging training ends in a loss that is not a number, not in an index outside the map."""
        inputs = self.make_inputs(1, 4, 3, (4, 4), (8, 8), dtype=torch.float32, device=device)
        inputs[2][0, 3, 2, 5] = torch.nan
        places = self.function(*inputs).isnan().any(1).nonzero().tolist()
        assert places == [[0, 2, 5]]

    def test_gradcheck(self):
        inputs = [x.requires_grad_() for x in self.make_inputs(1, 2, 3, (2, 3), (5, 4), 2)]
        assert torch.autograd.gradcheck(lambda *x: self.function(*x, 2), inputs)

    @pytest.mark.parametrize('device', DEVICES)
    @pytest.mark.parametrize('shape', [(0, 4, 3, 2), (2, 4, 0, 2)])
    def test_empty(self, shape, device):
        batch, _, *size = shape
        inputs = [x.requires_grad_() for x in self.make_inputs(batch, 4, 3, (3, 2), size, device=device)]
        output = self.function(*inputs)
        assert output.shape == (batch, 4 if self.function is deformable_assembly else 3, *size)
        output.sum().backward()
        assert all(x.grad is not None and not x.grad.any() for x in inputs)

    @needs_native
    def test_thread_counts_give_the_same_bits(self):
        inputs = [x.requires_grad_() for x in self.make_inputs(2, 40, 9, (33, 50), (70, 90), 2, torch.float32)]
        assert_same_bits_for_any_threads(lambda *x: self.function(*x, 2), inputs)
