# SPDX-License-Identifier: Apache-2.0
"""FLOP counters see the operators, compiled or not, at the price of their definition."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sapa_mm import ops
from sapa_mm.ops import reference

N, D, C, K = 2, 5, 7, 3
SIZE, CELLS = (12, 6), (4, 3)
POSITIONS = N * SIZE[0] * SIZE[1]
WINDOWS = POSITIONS * K * K

implementations = pytest.mark.parametrize('implementation', [ops, reference], ids=['ops', 'reference'])
needs_library = pytest.mark.skipif(ops.backend() != 'native', reason='the compiled operators are not there')


def maps(*channels_and_sizes, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(N, channels, *size, generator=generator).requires_grad_(requires_grad)
        for channels, size in channels_and_sizes
    ]


def macs(run):
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@implementations
def test_point_affiliation(implementation):
    query, key, value = maps((D, SIZE), (D, CELLS), (C, CELLS))
    assert macs(lambda: implementation.point_affiliation(query, key, value, K)) == WINDOWS * (D + C)


@implementations
def test_feature_assembly(implementation):
    feature, kernels = maps((6, CELLS), (2 * K * K, SIZE))
    assert macs(lambda: implementation.feature_assembly(feature, kernels, K, 2)) == WINDOWS * 6


@implementations
def test_affiliation_kernels(implementation):
    query, key = maps((D, SIZE), (D, CELLS))
    assert macs(lambda: implementation.affiliation_kernels(query, key, K)) == WINDOWS * D


@needs_library
def test_any_ratio():
    """What a position costs does not depend on the ratio."""
    query, key, value = maps((D, (11, 7)), (D, CELLS), (C, CELLS))
    assert macs(lambda: ops.point_affiliation(query, key, value, K)) == N * 11 * 7 * K * K * (D + C)


@needs_library
@pytest.mark.parametrize(
    ('needed', 'channels'),
    [('qkv', 3 * D + 2 * C), ('qk', 3 * D + C), ('q', 2 * D + C), ('k', 2 * D + C), ('v', D + C)],
)
def test_point_affiliation_backward(needed, channels):
    tensors = maps((D, SIZE), (D, CELLS), (C, CELLS))
    for name, x in zip('qkv', tensors):
        x.requires_grad_(name in needed)
    output = ops.point_affiliation(*tensors, K)
    # the weights again (D), the gradient of the scores (C), then of what is needed (D, D, C)
    assert macs(lambda: output.sum().backward()) == WINDOWS * channels


@needs_library
@pytest.mark.parametrize('needed', ['fk', 'f', 'k'])
def test_feature_assembly_backward(needed):
    feature, kernels = maps((C, CELLS), (K * K, SIZE))
    feature.requires_grad_('f' in needed)
    kernels.requires_grad_('k' in needed)
    output = ops.feature_assembly(feature, kernels, K)
    assert macs(lambda: output.sum().backward()) == WINDOWS * C * len(needed)


GROUPS, POINTS = 2, 3
SAMPLED = POSITIONS * GROUPS * POINTS * 4  # four channels of each group, at every point


def sampling_maps(**kwargs):
    return maps((4 * GROUPS, SIZE), (4 * GROUPS, CELLS), (GROUPS * POINTS, SIZE), (2 * GROUPS * POINTS, SIZE), **kwargs)


@needs_library
def test_deformable_sampling():
    """Four products for the sample, one with the query or the weight."""
    query, key, kernels, offset = sampling_maps()
    assert macs(lambda: ops.deformable_scores(query, key, offset, GROUPS)) == 5 * SAMPLED
    assert macs(lambda: ops.deformable_assembly(key, kernels, offset, GROUPS)) == 5 * SAMPLED


@needs_library
@pytest.mark.parametrize(('needed', 'products'), [('qko', 14), ('qk', 10), ('q', 5), ('k', 5), ('o', 4)])
def test_deformable_sampling_backward(needed, products):
    query, key, kernels, offset = sampling_maps()
    for name, tensors in dict(q=(query, kernels), k=(key,), o=(offset,)).items():
        for x in tensors:
            x.requires_grad_(name in needed)
    scores = ops.deformable_scores(query, key, offset, GROUPS)
    assert macs(lambda: scores.sum().backward()) == products * SAMPLED
    output = ops.deformable_assembly(key, kernels, offset, GROUPS)
    assert macs(lambda: output.sum().backward()) == products * SAMPLED


@implementations
def test_norm_projection(implementation):
    (x,), matrix = maps((D, SIZE)), torch.rand(C, D)
    assert macs(lambda: implementation.norm_projection(x, matrix, torch.zeros(C))) == POSITIONS * D * C


@needs_library
def test_norm_projection_backward():
    (x,), matrix = maps((D, SIZE), requires_grad=True), torch.rand(C, D, requires_grad=True)
    output = ops.norm_projection(x, matrix, torch.zeros(C))
    assert macs(lambda: output.sum().backward()) == 2 * POSITIONS * D * C


class Affiliation(torch.nn.Module):
    def forward(self, query, key, value, kernels):
        return ops.point_affiliation(query, key, value, K) + ops.feature_assembly(value, kernels, K)


def test_mmengine():
    """mmengine reads what an einsum of the reference costs with four digits only."""
    analysis = pytest.importorskip('mmengine.analysis')
    import sapa_mm.upsamplers  # noqa: F401  # registers the handles

    inputs = tuple(maps((D, SIZE), (D, CELLS), (C, CELLS), (K * K, SIZE)))
    result = analysis.get_model_complexity_info(Affiliation(), inputs=inputs, show_table=False, show_arch=False)
    tolerance = 0 if ops.backend() == 'native' else 1e-3
    assert result['flops'] == pytest.approx(WINDOWS * (D + 2 * C), rel=tolerance)
