# SPDX-License-Identifier: Apache-2.0
"""Windows whose border is not zero, in plain torch: what the compiled operators do not have yet.

Reflecting windows mirror the map at its outer positions, however far. Shifted ones move inwards until they lie inside
the map, the rule of neighbourhood attention, and leave out what a map smaller than the window has not.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .feature_assembly import feature_assembly
from .reference import _Cells, accumulation_dtype


def reflect(x: Tensor, radius: int) -> Tensor:
    """Pad a map by its mirror image; unlike ``F.pad``, by more than its size too."""
    for dim in (2, 3):
        size = x.shape[dim]
        place = torch.arange(-radius, size + radius, device=x.device) % max(2 * (size - 1), 1)
        x = x.index_select(dim, torch.where(place < size, place, 2 * (size - 1) - place))
    return x


def reflecting_scores(query: Tensor, key: Tensor, kernel_size: int) -> Tensor:
    """Inner products of each query with the window of keys at its own place, borders reflected.

    Args:
        query: ``(N, D, H, W)``.
        key: ``(N, D, H, W)``.
        kernel_size: Window side ``K``, odd.

    Returns:
        ``(N, K*K, H, W)``, each window row-major.
    """
    height, width = query.shape[2:]
    padded = reflect(key, kernel_size // 2)
    return torch.stack(
        [
            (query * padded[:, :, row : row + height, column : column + width]).sum(1)
            for row in range(kernel_size)
            for column in range(kernel_size)
        ],
        1,
    )


def reflecting_assembly(feature: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """:func:`sapa_mm.ops.feature_assembly` at the feature's own size, borders reflected: ``(N, C, H, W)``."""
    radius = kernel_size // 2
    padded = F.pad(kernels, (radius,) * 4)
    out = feature_assembly(reflect(feature, radius), padded, kernel_size)
    return out[:, :, radius : radius + feature.shape[2], radius : radius + feature.shape[3]]


def neighbourhood_attention(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, scale: float) -> Tensor:
    """Attention of each query to the window of its cell, shifted inwards at borders.

    Args:
        query: ``(N, D, H, W)``, any size.
        key: ``(N, D, h, w)``.
        value: ``(N, C, h, w)``.
        kernel_size: Window side, odd.
        scale: Factor of the scores before the softmax.

    Returns:
        ``(N, C, H, W)``, dtype of ``value``; half and bfloat16 are accumulated in float32.
    """
    dtype = accumulation_dtype(value.dtype)
    cells = _Cells(query.shape[2:], key.shape[2:], query.device)
    rows, columns = (_shifted(side, kernel_size, query.device) for side in key.shape[2:])
    inside = (rows[1][:, None, :, None] & columns[1][None, :, None, :]).flatten(2).movedim(2, 0)  # (K*K, h, w)

    def windows(x: Tensor) -> Tensor:
        x = x.to(dtype)[:, :, rows[0]][:, :, :, :, columns[0]]  # (N, C, h, K, w, K)
        return x.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)

    scores = torch.einsum('ndhwq,ndkhw->nkhwq', cells.group(query.to(dtype)), windows(key)) * scale
    weights = scores.masked_fill(~inside[..., None], float('-inf')).softmax(1)
    out = torch.einsum('nkhwq,nckhw->nchwq', weights, windows(value))
    return cells.ungroup(out).to(value.dtype)


def _shifted(size: int, kernel_size: int, device) -> tuple[Tensor, Tensor]:
    """Window of every cell of an axis, ``(size, K)``, and which of it the axis has."""
    first = (torch.arange(size, device=device) - kernel_size // 2).clamp(max=size - kernel_size).clamp(min=0)
    places = first[:, None] + torch.arange(kernel_size, device=device)
    return places.clamp(max=size - 1), places < size
