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

from sapa_mm.ops import deformable_assembly, deformable_scores, reference

FORMATS = [torch.contiguous_format, torch.channels_last]
FUNCTIONS = pytest.mark.parametrize(
    'function, expected',
    [
        (deformable_scores, reference.deformable_scores),
        (deformable_assembly, reference.deformable_assembly),
    ],
    ids=['scores', 'assembly'],
)


def make_inputs(function, batch, channels, points, cells, size, groups=1, dtype=torch.float64, seed=0, **kwargs):
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


def compare(function, expected, inputs, groups):
    """As compare_with_reference, for results of another dtype than the inputs."""
    kernels = inputs[1] if function is deformable_assembly else None
    if kernels is not None and kernels.dtype in (torch.half, torch.bfloat16):
        inputs = [inputs[0], kernels.float(), inputs[2]]
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = expected(*exact, groups), function(*leaves, groups)
    dtype = inputs[0].dtype
    assert outputs[1].dtype == (dtype if function is deformable_assembly else reference.accumulation_dtype(dtype))
    assert_close(outputs[1].detach().cpu(), outputs[0].detach(), outputs[1].dtype, 'output')
    (cotangent,) = random_maps(outputs[0].shape, dtype=dtype, seed=1)
    theirs = torch.autograd.grad(outputs[0], exact, cotangent.double())
    ours = torch.autograd.grad(outputs[1], leaves, cotangent.to(outputs[1]))
    for i, (a, e) in enumerate(zip(ours, theirs)):
        assert a.dtype == inputs[i].dtype
        assert_close(a.cpu(), e, a.dtype, f'gradient of input {i}')


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('groups', [1, 3])
@pytest.mark.parametrize(
    ('cells', 'size'), [((6, 7), (12, 14)), ((6, 7), (11, 13)), ((6, 7), (3, 70)), ((1, 1), (2, 3))]
)
@FUNCTIONS
def test_matches_reference(function, expected, cells, size, groups, dtype, memory_format, device):
    inputs = make_inputs(function, 2, 19, 5, cells, size, groups, dtype, device=device)
    inputs = [x.to(memory_format=memory_format) for x in inputs]
    compare(function, expected, inputs, groups)
    if function is deformable_assembly and dtype == torch.float32:
        assert function(*inputs, groups).is_contiguous(memory_format=memory_format)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    assembly=st.booleans(),
    cells=st.tuples(st.integers(1, 70), st.integers(1, 140)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 140)),
    channels=st.integers(1, 70),
    points=st.integers(1, 12),
    groups=st.integers(1, 4),
    memory_format=st.sampled_from(FORMATS),
)
def test_any_size(assembly, cells, size, channels, points, groups, memory_format):
    function = deformable_assembly if assembly else deformable_scores
    inputs = make_inputs(function, 1, channels, points, cells, size, groups, torch.float64)
    compare(
        function, getattr(reference, function.__name__), [x.to(memory_format=memory_format) for x in inputs], groups
    )


@pytest.mark.parametrize('which', range(3))
@FUNCTIONS
def test_non_contiguous_and_single_gradient(function, expected, which):
    inputs = make_inputs(function, 2, 4, 3, (5, 4), (10, 9), 2)
    inputs[which] = torch.stack([inputs[which]] * 2, dim=-1)[..., 1]
    compare_with_reference(function, expected, inputs, 2)
    leaves = [x.detach().clone().requires_grad_(i == which) for i, x in enumerate(inputs)]
    function(*leaves, 2).sum().backward()
    assert [x.grad is not None for x in leaves] == [i == which for i in range(3)]


@pytest.mark.parametrize('device', DEVICES)
@FUNCTIONS
def test_far_outside_is_zero_and_still(function, expected, device):
    """Nothing is sampled there, and moving a point changes nothing."""
    inputs = make_inputs(function, 1, 4, 2, (3, 4), (6, 8), dtype=torch.float32, device=device)
    inputs[2] = torch.full_like(inputs[2], 1e9)
    inputs[2][:, 1] = -torch.inf
    leaves = [x.requires_grad_() for x in inputs]
    output = function(*leaves)
    assert not output.any()
    assert not any(x.any() for x in torch.autograd.grad(output.sum(), leaves))


@needs_native
@pytest.mark.parametrize('device', DEVICES)
@FUNCTIONS
def test_not_a_number_stays_in_its_place(function, expected, device):
    """A diverging training ends in a loss of NaN, not in an index outside the map."""
    inputs = make_inputs(function, 1, 4, 3, (4, 4), (8, 8), dtype=torch.float32, device=device)
    inputs[2][0, 3, 2, 5] = torch.nan
    places = function(*inputs).isnan().any(1).nonzero().tolist()
    assert places == [[0, 2, 5]]


@FUNCTIONS
def test_gradcheck(function, expected):
    inputs = [x.requires_grad_() for x in make_inputs(function, 1, 2, 3, (2, 3), (5, 4), 2)]
    assert torch.autograd.gradcheck(lambda *x: function(*x, 2), inputs)


@pytest.mark.parametrize('shape', [(0, 4, 3, 2), (2, 4, 0, 2)])
@FUNCTIONS
def test_empty(function, expected, shape):
    batch, _, *size = shape
    inputs = [x.requires_grad_() for x in make_inputs(function, batch, 4, 3, (3, 2), size)]
    output = function(*inputs)
    assert output.shape == (batch, 3 if function is deformable_scores else 4, *size)
    output.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in inputs)


@needs_native
@FUNCTIONS
def test_opcheck_and_double_backward(function, expected):
    inputs = [x.requires_grad_() for x in make_inputs(function, 1, 4, 3, (3, 4), (7, 8), 2, torch.float32)]
    torch.library.opcheck(getattr(torch.ops.sapa_mm, function.__name__).default, (*inputs, 2))
    grads = torch.autograd.grad(function(*inputs, 2).sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative'):
        grads[0].sum().backward()


@needs_native
@FUNCTIONS
def test_thread_counts_give_the_same_bits(function, expected):
    inputs = [x.requires_grad_() for x in make_inputs(function, 2, 40, 9, (33, 50), (70, 90), 2, torch.float32)]
    assert_same_bits_for_any_threads(lambda *x: function(*x, 2), inputs)


@needs_native
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_deterministic_algorithms_refuse_the_atomic_sum():
    inputs = [x.requires_grad_() for x in make_inputs(deformable_scores, 1, 4, 3, (3, 4), (7, 8), device='cuda')]
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
def test_bad_scores_input(change, error, match):
    arguments = dict(query=zeros(4, 4, 4), key=zeros(4, 2, 2), offset=zeros(12, 4, 4), groups=2)
    with pytest.raises(error, match=match):
        deformable_scores(**{**arguments, **change})


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(kernels=zeros(5, 4, 4)), ValueError, 'kernels must have half the channels of offset, got 5 and 12'),
        (dict(kernels=zeros(6, 4, 5)), ValueError, 'kernels and offset must have the same height'),
        (dict(kernels=torch.zeros(2, 6, 4, 4)), ValueError, 'one batch size .* got 2 .* and 1'),
        (dict(kernels=zeros(6, 4, 4).int()), TypeError, 'kernels must be floating point, got torch.int32'),
        (dict(feature=zeros(3, 2, 2)), ValueError, 'groups must divide.*got 2 groups and 3 channels'),
        (dict(feature=zeros(4, 0, 2)), ValueError, 'feature is empty'),
    ],
)
def test_bad_assembly_input(change, error, match):
    arguments = dict(feature=zeros(4, 2, 2), kernels=zeros(6, 4, 4), offset=zeros(12, 4, 4), groups=2)
    with pytest.raises(error, match=match):
        deformable_assembly(**{**arguments, **change})
