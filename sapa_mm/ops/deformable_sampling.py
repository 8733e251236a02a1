# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling: score and mix decoder points that lie anywhere, not in a window."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import check_deformable_assembly, check_deformable_scores
from .library import is_loaded, runs_native


@autocast_inputs
def deformable_scores(query: Tensor, key: Tensor, offset: Tensor, groups: int = 1) -> Tensor:
    """Inner products of each query with samples of the keys at freely placed points.

    Point ``p`` of group ``g`` of position ``(i, j)`` lies at the cell ``(floor(i * h / H), floor(j * w / W))`` plus its
    offset, in positions of the low-resolution map, 0 being a position's centre. Samples are bilinear; positions outside
    the map are zero vectors.

    Args:
        query: Projected guide, ``(N, groups * D, H, W)``, floating point.
        key: Projected feature, ``(N, groups * D, h, w)``, dtype and device of ``query``.
        offset: ``(N, groups * points * 2, H, W)``, dtype and device of ``query``: by group, by point, ``x`` (width)
            then ``y`` (height), any values.
        groups: Groups of neighbouring channels, each with points of its own.

    Returns:
        ``(N, groups * points, H, W)``, float64 for float64 and float32 for all other dtypes: the products are summed in
        it. Inside autocast all inputs are cast to its dtype first.

    Raises:
        TypeError: If an input is no floating-point tensor or the dtypes differ.
        ValueError: If ranks, batch sizes, channel counts, sizes or devices do not fit.

    On CUDA the gradient of ``key`` is summed by atomic additions, whose order varies: any position may have sampled any
    other, so none can collect from its neighbours. ``torch.use_deterministic_algorithms`` refuses it. All else, and
    everything on the CPU, repeats bit for bit.

    Source: SAPA-D, https://github.com/tiny-smart/sapa.
    """
    if not runs_native(query):
        return reference.deformable_scores(query, key, offset, groups)
    check_deformable_scores(query, key, offset, groups)
    return torch.ops.sapa_mm.deformable_scores(query, key, offset, groups)


@autocast_inputs
def deformable_assembly(feature: Tensor, kernels: Tensor, offset: Tensor, groups: int = 1) -> Tensor:
    """Weighted sum of samples of the features at the points of :func:`deformable_scores`.

    Args:
        feature: ``(N, C, h, w)``, floating point.
        kernels: ``(N, groups * points, H, W)``, used as given (normalise them first), of any floating-point dtype.
        offset: ``(N, groups * points * 2, H, W)``, dtype and device of ``feature``.
        groups: Groups of neighbouring channels, each with points of its own; divides ``C``.

    Returns:
        ``(N, C, H, W)``, dtype of ``feature``; half and bfloat16 are accumulated in float32.

    Raises:
        TypeError, ValueError: As :func:`deformable_scores`, whose note on determinism holds for ``feature`` here.
    """
    if not runs_native(feature):
        return reference.deformable_assembly(feature, kernels, offset, groups)
    check_deformable_assembly(feature, kernels, offset, groups)
    kernels = kernels.to(reference.accumulation_dtype(feature.dtype))
    return torch.ops.sapa_mm.deformable_assembly(feature, kernels, offset, groups)


def _register() -> None:
    from .registration import fake_gradients, memory_format, register_backward, register_fake

    @register_fake('sapa_mm::deformable_scores')
    def _(query, key, offset, groups):
        shape = (offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])
        return query.new_empty(shape, dtype=reference.accumulation_dtype(query.dtype))

    @register_fake('sapa_mm::deformable_assembly')
    def _(feature, kernels, offset, groups):
        output = feature.new_empty((*feature.shape[:2], *offset.shape[2:]))
        return output.to(memory_format=memory_format(feature))

    @register_fake('sapa_mm::_deformable_scores_backward')
    def _(grad, query, key, offset, groups, needs_grad):
        return fake_gradients((query, key, offset), needs_grad)

    @register_fake('sapa_mm::_deformable_assembly_backward')
    def _(grad, feature, kernels, offset, groups, needs_grad):
        return fake_gradients((feature, kernels, offset), needs_grad)

    register_backward('deformable_scores', tensors=3)
    register_backward('deformable_assembly', tensors=3)


if is_loaded():
    _register()
