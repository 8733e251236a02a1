# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from helpers import (
    DEVICES,
    LOW_DTYPES,
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

from sapa_mm.ops import affiliation_kernels, point_affiliation, reference
from sapa_mm.ops.autocast import CAN_COMPILE
from sapa_mm.ops.checks import NORMALIZATIONS
from sapa_mm.ops.maps import cell_of

FORMATS = [torch.contiguous_format, torch.channels_last]


def is_smooth(kernel_size, normalization):
    """Whether gradients keep their digits: the weight of a single tap, s / (s + EPS), is all but constant."""
    return kernel_size > 1 or normalization == 'softmax'


def make_inputs(batch, embed_dims, channels, cells, size, **kwargs):
    return random_maps((batch, embed_dims, *size), (batch, embed_dims, *cells), (batch, channels, *cells), **kwargs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(('cells', 'size'), [((6, 7), (12, 14)), ((6, 7), (11, 13)), ((3, 5), (11, 18))])
def test_matches_reference(cells, size, dtype, memory_format, device):
    inputs = make_inputs(2, 8, 37, cells, size, dtype=dtype, device=device)
    inputs = [x.to(memory_format=memory_format) for x in inputs]
    compare_with_reference(point_affiliation, reference.point_affiliation, inputs)
    assert point_affiliation(*inputs).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 15])
def test_options(kernel_size, normalization, device):
    inputs = make_inputs(1, 3, 5, (4, 6), (9, 12), dtype=torch.float64, device=device)
    compare_with_reference(
        point_affiliation,
        reference.point_affiliation,
        inputs,
        kernel_size,
        normalization,
        gradients=is_smooth(kernel_size, normalization),
    )


@pytest.mark.parametrize('device', DEVICES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cells=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([64, 257, 1030])),
    embed_dims=st.integers(1, 40),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    normalization=st.sampled_from(NORMALIZATIONS),
    memory_format=st.sampled_from(FORMATS),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_size(cells, size, channels, embed_dims, kernel_size, normalization, memory_format, dtype, device):
    if cells[0] * cells[1] * channels * kernel_size**2 > 4e6 or size[0] * size[1] * channels > 1e6:
        channels = 3  # the reference unfolds; large maps are tried with few channels
    inputs = [
        (x / 4).to(memory_format=memory_format)
        for x in make_inputs(1, embed_dims, channels, cells, size, dtype=dtype, device=device)
    ]
    compare_with_reference(
        point_affiliation,
        reference.point_affiliation,
        inputs,
        kernel_size,
        normalization,
        gradients=is_smooth(kernel_size, normalization),
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('which', range(3))
def test_non_contiguous(which, device):
    inputs = make_inputs(2, 6, 5, (5, 4), (10, 9), device=device)
    inputs[which] = torch.stack([inputs[which]] * 2, dim=-1)[..., 1].transpose(2, 3).contiguous().transpose(2, 3)
    assert not inputs[which].is_contiguous()
    compare_with_reference(point_affiliation, reference.point_affiliation, inputs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('which', range(3))
def test_single_input_requires_grad(which, device):
    inputs = make_inputs(1, 3, 4, (3, 4), (6, 9), device=device)
    assert_single_gradient(point_affiliation, reference.point_affiliation, inputs, which)


@pytest.mark.parametrize('normalization', ['softmax', 'sigmoid', 'softplus'])
def test_gradcheck(normalization):
    inputs = [x.requires_grad_() for x in make_inputs(1, 2, 2, (2, 3), (5, 4))]
    assert torch.autograd.gradcheck(lambda *x: point_affiliation(*x, 3, normalization), inputs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    'shapes', [((0, 3, 4, 4), (0, 3, 2, 2), (0, 5, 2, 2)), ((2, 3, 0, 4), (2, 3, 2, 2), (2, 5, 2, 2))]
)
def test_empty(shapes, device):
    inputs = [torch.zeros(shape, device=device).requires_grad_() for shape in shapes]
    output = point_affiliation(*inputs)
    assert output.shape == (shapes[0][0], 5, *shapes[0][2:])
    output.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in inputs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('which', ['key', 'value'])
@pytest.mark.parametrize('size', [(18, 22), (17, 25)])
def test_non_finite_values_stay_in_their_windows(which, bad, size, device):
    query, key, value = make_inputs(1, 4, 5, (9, 11), size, device=device)
    (key if which == 'key' else value)[0, 1, 4, 10] = bad
    leaves = [x.requires_grad_() for x in (query, key, value)]
    output = point_affiliation(*leaves)
    rows = cell_of(size[0], 9)
    columns = cell_of(size[1], 11)
    touched = ((rows - 4).abs() <= 2)[:, None] & ((columns - 10).abs() <= 2)[None]
    finite = output.detach().isfinite().all(1)[0].cpu()
    if which == 'key' and bad == float('inf'):  # a score of -inf is a weight of 0, not NaN
        assert finite[~touched].all() and not finite.all()
    else:
        assert torch.equal(finite, ~touched)
    assert torch.equal(finite, reference.point_affiliation(query, key, value).isfinite().all(1)[0].cpu())
    # In backward it reaches the queries whose window holds it, and their windows, but no further.
    output.backward(torch.ones_like(output))
    assert leaves[0].grad.isfinite().all(1)[0].cpu()[~touched].all()
    near = ((torch.arange(9) - 4).abs() <= 4)[:, None] & ((torch.arange(11) - 10).abs() <= 4)[None]
    for leaf in leaves[1:]:
        assert leaf.grad.isfinite().all(1)[0].cpu()[~near].all()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_large_scores_do_not_overflow(dtype, device):
    query, key, value = make_inputs(1, 8, 4, (5, 5), (10, 10), dtype=dtype, device=device)
    inputs = [(query * 60).requires_grad_(), (key * 60).requires_grad_(), value.requires_grad_()]
    output = point_affiliation(*inputs)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert_close(output.detach(), reference.point_affiliation(*(x.detach().double() for x in inputs)), dtype)


@needs_native
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', [(66, 90), (61, 87)])
def test_repeats_and_thread_counts_give_the_same_bits(size, device):
    inputs = make_inputs(2, 7, 33, (33, 130), size, dtype=torch.float32, device=device)
    assert_same_bits_for_any_threads(point_affiliation, inputs)


@needs_native
@pytest.mark.skipif(not CAN_COMPILE, reason='before torch 2.6 the operators stay out of compiled graphs')
def test_compiles_without_a_graph_break():
    inputs = make_inputs(1, 2, 3, (2, 3), (4, 6), dtype=torch.float32)
    compiled = torch.compile(point_affiliation, fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(*inputs), point_affiliation(*inputs))


@pytest.mark.parametrize('dtype', LOW_DTYPES)
def test_autocast_casts_all_inputs(dtype):
    query, key, value = make_inputs(1, 4, 5, (3, 4), (6, 8), dtype=torch.float32)
    inputs = [query.to(dtype), key.requires_grad_(), value]
    with torch.autocast('cpu', dtype=dtype):
        output = point_affiliation(*inputs)
    assert output.dtype == dtype
    output.sum().backward()
    assert key.grad.dtype == torch.float32
    assert torch.equal(output, point_affiliation(*(x.to(dtype) for x in inputs)))


def test_kernels_sum_to_one_and_mix():
    query, key, value = make_inputs(1, 4, 5, (5, 6), (11, 12))
    kernels = affiliation_kernels(query, key, 5)
    assert kernels.shape == (1, 25, 11, 12)
    assert torch.allclose(kernels.sum(1), torch.ones(1, 11, 12, dtype=torch.float64))
    mixed = reference.feature_assembly(value, kernels, 5)
    assert torch.allclose(mixed, point_affiliation(query, key, value, 5), atol=1e-13)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(kernel_size=4), ValueError, 'odd and between 1 and 15, got 4'),
        (dict(kernel_size=17), ValueError, 'got 17'),
        (dict(kernel_size=3.0), TypeError, 'must be an int, got float'),
        (dict(normalization='max'), ValueError, "one of .*'softmax'.*got 'max'"),
        (dict(key=torch.zeros(1, 4, 2, 2)), ValueError, 'same number of channels, got 3 and 4'),
        (dict(value=torch.zeros(1, 5, 3, 2)), ValueError, r'same height and width, got \(2, 2\) and \(3, 2\)'),
        (dict(query=torch.zeros(3, 4, 4)), ValueError, r'query must have 4 dimensions.*got 3: \(3, 4, 4\)'),
        (dict(query=torch.zeros(2, 3, 4, 4)), ValueError, 'one batch size, got 2 and 1'),
        (dict(key=torch.zeros(1, 3, 2, 2).double()), TypeError, 'one dtype, got torch.float32 and torch.float64'),
        (dict(value=torch.zeros(1, 5, 2, 2, device='meta')), ValueError, 'one device, got cpu and meta'),
        (dict(query=torch.zeros(1, 3, 4, 4).int()), TypeError, 'must be floating point, got torch.int32'),
        (dict(query=[1.0]), TypeError, 'query must be a Tensor, got list'),
        (dict(key=torch.zeros(1, 3, 0, 2), value=torch.zeros(1, 5, 0, 2)), ValueError, 'key is empty'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(query=torch.zeros(1, 3, 4, 4), key=torch.zeros(1, 3, 2, 2), value=torch.zeros(1, 5, 2, 2))
    with pytest.raises(error, match=match):
        point_affiliation(**{**arguments, **change})
