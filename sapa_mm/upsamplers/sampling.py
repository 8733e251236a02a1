# SPDX-License-Identifier: Apache-2.0
"""Positions that several upsamplers sample the feature at."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.maps import accumulation_dtype, cell_of


def sample(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Read a map, bilinearly, at positions clamped to it.

    Half and bfloat16 maps are sampled in the dtype of the positions, which must be finer: their own resolution is
    coarser than an offset.

    Args:
        x: ``(N, C, h, w)``.
        columns: ``(N, H, W)`` in positions of ``x``, 0 the centre of the first, float32 or float64.
        rows: As ``columns``.

    Returns:
        ``(N, C, H, W)``, dtype of ``x``.
    """
    height, width = x.shape[2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return sample_grid(x.to(grid.dtype), grid).to(x.dtype)


def sample_grid(x: Tensor, grid: Tensor) -> Tensor:
    """``F.grid_sample``, borders repeated; NaN at positions that are NaN, where torch's backward ends the process."""
    lost = grid.isnan().any(-1)
    grid = grid.masked_fill(lost[..., None], 0)
    out = F.grid_sample(x, grid, mode='bilinear', padding_mode='border', align_corners=False)
    return out.masked_fill(lost[:, None], float('nan'))


def full_precision(x: Tensor) -> Tensor:
    """Offsets in the dtype that positions need: float64 stays, all else becomes float32."""
    return x.to(accumulation_dtype(x.dtype))


def aligned_shift(size: int, cells: int, like: Tensor) -> Tensor:
    """Where an axis aligned at its corners' centres differs from the cells: ``i (h - 1) / (H - 1) - floor(i h / H)``.

    The compiled operators count offsets from the cell.

    Args:
        size: ``H``.
        cells: ``h``.
        like: Tensor whose device and dtype the result has.

    Returns:
        ``(H,)``; the one position of an axis of one lies at 0.
    """
    steps = max(size - 1, 1)
    # the numerator is exact, in integers
    numerator = torch.arange(size, device=like.device) * (cells - 1) - cell_of(size, cells, like.device) * steps
    return numerator.to(like.dtype) / steps
