# SPDX-License-Identifier: Apache-2.0
"""Deformable scores: compare an encoder point with decoder points that lie anywhere, not in a window."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import check_deformable_scores
from .library import runs_native


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
    if not runs_native('deformable_scores', query):
        return reference.deformable_scores(query, key, offset, groups)
    check_deformable_scores(query, key, offset, groups)
    return torch.ops.sapa_mm.deformable_scores(query, key, offset, groups)
