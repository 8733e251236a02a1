# SPDX-License-Identifier: Apache-2.0
import functools

import pytest
import torch
from helpers import (
    DEVICES,
    TOLERANCE,
    assert_same_bits_for_any_threads,
    assert_single_gradient,
    needs_native,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import compare_sampling, make_sampling_inputs

from sapa_mm.ops import deformable_scores, reference

FORMATS = [torch.contiguous_format, torch.channels_last]
make_inputs = functools.partial(make_sampling_inputs, deformable_scores)
compare = functools.partial(compare_sampling, deformable_scores, reference.deformable_scores)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('groups', [1, 3])
@pytest.mark.parametrize(
    ('cells', 'size'), [((6, 7), (12, 14)), ((6, 7), (11, 13)), ((6, 7), (3, 70)), ((1, 1), (2, 3))]
)
def test_matches_reference(cells, size, groups, dtype, memory_format, device):
    inputs = make_inputs(2, 19, 5, cells, size, groups, dtype, device=device)
    inputs = [x.to(memory_format=memory_format) for x in inputs]
    compare(inputs, groups)
    assert deformable_scores(*[x.detach() for x in inputs], groups).is_contiguous()


@pytest.mark.parametrize('device', DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    cells=st.tuples(st.integers(1, 70), st.integers(1, 140)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 140)),
    channels=st.integers(1, 70),
    points=st.integers(1, 12),
    groups=st.integers(1, 4),
    memory_format=st.sampled_from(FORMATS),
)
def test_any_size(cells, size, channels, points, groups, memory_format, device):
    inputs = make_inputs(1, channels, points, cells, size, groups, torch.float64, device=device)
    compare([x.to(memory_format=memory_format) for x in inputs], groups)


@pytest.mark.parametrize('which', range(3))
def test_non_contiguous_and_single_gradient(which):
    inputs = make_inputs(2, 4, 3, (5, 4), (10, 9), 2)
    inputs[which] = torch.stack([inputs[which]] * 2, dim=-1)[..., 1]
    compare(inputs, 2)
    assert_single_gradient(deformable_scores, reference.deformable_scores, inputs, which, 2)


@pytest.mark.parametrize('device', DEVICES)
def test_far_outside_is_zero_and_still(device):
    """Nothing is sampled there, and moving a point changes nothing."""
    inputs = make_inputs(1, 4, 2, (3, 4), (6, 8), dtype=torch.float32, device=device)
    inputs[2] = torch.full_like(inputs[2], 1e9)
    inputs[2][:, 1] = -torch.inf
    leaves = [x.requires_grad_() for x in inputs]
    output = deformable_scores(*leaves)
    assert not output.any()
    assert not any(x.any() for x in torch.autograd.grad(output.sum(), leaves))


@needs_native
@pytest.mark.parametrize('device', DEVICES)
def test_not_a_number_stays_in_its_place(device):
    """A diverging training ends in a loss that is not a number, not in an index outside the map."""
    inputs = make_inputs(1, 4, 3, (4, 4), (8, 8), dtype=torch.float32, device=device)
    inputs[2][0, 3, 2, 5] = torch.nan
    places = deformable_scores(*inputs).isnan().any(1).nonzero().tolist()
    assert places == [[0, 2, 5]]


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs(1, 2, 3, (2, 3), (5, 4), 2)]
    assert torch.autograd.gradcheck(lambda *x: deformable_scores(*x, 2), inputs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('shape', [(0, 4, 3, 2), (2, 4, 0, 2)])
def test_empty(shape, device):
    batch, _, *size = shape
    inputs = [x.requires_grad_() for x in make_inputs(batch, 4, 3, (3, 2), size, device=device)]
    output = deformable_scores(*inputs)
    assert output.shape == (batch, 3, *size)
    output.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in inputs)


@needs_native
def test_thread_counts_give_the_same_bits():
    inputs = [x.requires_grad_() for x in make_inputs(2, 40, 9, (33, 50), (70, 90), 2, torch.float32)]
    assert_same_bits_for_any_threads(lambda *x: deformable_scores(*x, 2), inputs)


@needs_native
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_deterministic_algorithms_refuse_the_atomic_sum():
    inputs = [x.requires_grad_() for x in make_inputs(1, 4, 3, (3, 4), (7, 8), device='cuda')]
    torch.use_deterministic_algorithms(True)
    try:
        output = deformable_scores(*inputs)
        torch.autograd.grad(output.sum(), (inputs[0], inputs[2]), retain_graph=True)
        with pytest.raises(RuntimeError, match='deterministic'):
            torch.autograd.grad(output.sum(), inputs[1])
    finally:
        torch.use_deterministic_algorithms(False)


def zeros(*shape, **kwargs):
    return torch.zeros(1, *shape, **kwargs)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(groups=3), ValueError, 'groups must divide.*got 3 groups and 4 channels'),
        (dict(groups=2.0), TypeError, 'groups must be an int, got float'),
        (dict(groups=4), ValueError, r'offset must have 2 \* groups \* points channels, got 12 channels for 4 groups'),
        (dict(offset=zeros(0, 4, 4)), ValueError, 'offset must have .* got 0 channels'),
        (
            dict(offset=zeros(12, 4, 5)),
            ValueError,
            r'query and offset must have the same height.*\(4, 4\) and \(4, 5\)',
        ),
        (dict(offset=zeros(12, 4, 4).half()), TypeError, 'one dtype, got torch.float32 and torch.float16'),
        (dict(key=zeros(8, 2, 2)), ValueError, 'the same number of channels, got 4 and 8'),
        (dict(key=zeros(4, 0, 2)), ValueError, 'key is empty'),
        (dict(query=zeros(4, 4)), ValueError, 'query must have 4 dimensions'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(query=zeros(4, 4, 4), key=zeros(4, 2, 2), offset=zeros(12, 4, 4), groups=2)
    with pytest.raises(error, match=match):
        deformable_scores(**{**arguments, **change})
