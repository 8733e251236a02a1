# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of the compiled operators, told to the counters of torch and mmengine.

A query meets ``K*K`` keys of ``D`` channels and mixes ``K*K`` values of ``C`` channels, at each of the ``H*W``
positions: ``N * H * W * K*K * (D + C)``. A deformable point costs one product for each channel too, and four for its
bilinear sample. Normalising scores or channels is not counted, as in the published tables.

The reference needs no formula: it consists of operators that the counters know, and costs the same for integer ratios
(for others it fills every cell up to the fullest one, and the counters see that). Its ``grid_sample`` only
``tools/get_flops.py`` counts.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch

from . import library  # noqa: F401  # loads the operators

#: Products of a bilinear sample, per channel.
TAPS = 4


def _point_affiliation(query, key, value, kernel_size, normalization, border) -> int:
    return _windows(query, kernel_size) * (query[1] + value[1])


def _point_affiliation_backward(
    grad, query, key, value, normalizer, kernel_size, normalization, border, needs_grad
) -> int:
    needs_query, needs_key, needs_value = needs_grad
    # The weights are computed again; the gradient of a score is a product with the value.
    channels = query[1] * (1 + needs_query + needs_key) + value[1] * ((needs_query or needs_key) + needs_value)
    return _windows(query, kernel_size) * channels


def _feature_assembly(feature, kernels, kernel_size, groups, border) -> int:
    return _windows(kernels, kernel_size) * feature[1]


def _feature_assembly_backward(grad, feature, kernels, kernel_size, groups, border, needs_grad) -> int:
    return _windows(kernels, kernel_size) * feature[1] * sum(needs_grad)


def _deformable_scores(query, key, offset, groups) -> int:
    return _samples(offset, query[1] // groups) * (TAPS + 1)


def _deformable_scores_backward(grad, query, key, offset, groups, needs_grad) -> int:
    return _samples(offset, query[1] // groups) * _sampling_backward(*needs_grad)


def _deformable_assembly(feature, kernels, offset, groups) -> int:
    return _samples(offset, feature[1] // groups) * (TAPS + 1)


def _deformable_assembly_backward(grad, feature, kernels, offset, groups, needs_grad) -> int:
    needs_feature, needs_kernels, needs_offset = needs_grad
    return _samples(offset, feature[1] // groups) * _sampling_backward(needs_kernels, needs_feature, needs_offset)


def _norm_projection(x, matrix, shift, eps) -> int:
    return x[0] * prod(x[2:]) * prod(matrix)


def _norm_projection_backward(grad, x, matrix, shift, mean, rstd, eps, needs_grad) -> int:
    return _norm_projection(x, matrix, None, None) * (needs_grad[0] + needs_grad[1])


def _sampling_backward(needs_vector, needs_sampled, needs_offset) -> int:
    """Per sampled number: the sample again and a product, the transpose of that, and the products with four taps."""
    return (TAPS + 1) * (needs_vector + needs_sampled) + TAPS * needs_offset


def _samples(offset: Sequence[int], channels: int) -> int:
    return offset[0] * offset[1] // 2 * prod(offset[2:]) * channels


def _windows(shape: Sequence[int], kernel_size: int) -> int:
    return shape[0] * prod(shape[2:]) * kernel_size**2


#: Operator of ``torch.ops.sapa_mm`` -> multiply-accumulates, from its arguments with shapes in place of tensors.
MACS: dict[str, Callable[..., int]] = {
    'point_affiliation': _point_affiliation,
    '_point_affiliation_backward': _point_affiliation_backward,
    'feature_assembly': _feature_assembly,
    '_feature_assembly_backward': _feature_assembly_backward,
    'deformable_scores': _deformable_scores,
    '_deformable_scores_backward': _deformable_scores_backward,
    'deformable_assembly': _deformable_assembly,
    '_deformable_assembly_backward': _deformable_assembly_backward,
    'norm_projection': _norm_projection,
    '_norm_projection_backward': _norm_projection_backward,
}


def _registered():
    """Names of the operators that are there, compiled or Triton's, and their formulas."""
    for name, macs in MACS.items():
        for prefix in ('', 'triton_'):
            full = f'_{prefix}{name[1:]}' if name.startswith('_') else prefix + name
            if hasattr(torch.ops.sapa_mm, full):
                yield full, macs


def register_with_torch() -> None:
    """Let ``torch.utils.flop_counter.FlopCounterMode`` see the compiled operators; it counts two per product."""
    from torch.utils import flop_counter

    # Its public registration came with torch 2.2 and gives formulas what this table gave them: shapes.
    register = getattr(flop_counter, 'register_flop_formula', None)
    for name, macs in _registered():

        def flops(*args, out_shape=None, macs=macs, **kwargs) -> int:
            return 2 * macs(*args, **kwargs)

        operator = getattr(torch.ops.sapa_mm, name)
        if register:
            register(operator)(flops)
        else:
            flop_counter.flop_mapping[operator] = flops


def register_with_mmengine() -> None:
    """Let ``mmengine.analysis.get_model_complexity_info`` see the compiled operators; it counts one per product.

    Nothing to do where mmengine is not installed.
    """
    # mmengine offers no other way than this table to add an operator for all models, and calls none of it public.
    try:
        from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS as handles
        from mmengine.analysis.jit_handles import get_shape
    except ImportError:
        return

    for name, macs in _registered():

        def handle(inputs, outputs, macs=macs) -> int:
            return macs(*(get_shape(x) if x.isCompleteTensor() else x.toIValue() for x in inputs))

        handles[f'sapa_mm::{name}'] = handle


register_with_torch()
