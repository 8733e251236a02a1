# SPDX-License-Identifier: Apache-2.0
"""What the operators, their reference and the upsamplers agree on about maps: cells, sums and memory layout."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sizes import is_compiling, known

#: Added to the sum of the weights by the normalisations that can reach zero; the ablation that has them names no value.
EPS = 1e-6


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of whatever follows the map ``x``: C++'s ``x.suggest_memory_format()``, in terms of strides.

    Channels last if the strides grow in the order channels, columns, rows, images; else contiguous. A slice of a
    channels-last map is channels last too, though it is not contiguous. Where positions of size 1 leave both open
    (equal strides of channels and images) the answer is contiguous. So it is in torch.func, whose vmap can lay out
    nothing else.
    """
    if x.dim() != 4 or x.stride(1) == 0 or (not is_compiling() and torch._C._are_functorch_transforms_active()):
        return torch.contiguous_format
    least = 0
    for dim in (1, 3, 2, 0):
        size, stride = x.shape[dim], x.stride(dim)
        if size == 0 or stride < least or (dim == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = stride * size if size > 1 else stride
    return torch.channels_last


def cell_of(size: int, cells: int, device=None) -> Tensor:
    """Cell of every position along one axis: ``floor(position * cells / size)``, ``(size,)`` int64."""
    return torch.arange(size, device=device) * cells // size


_POWERS_OF_TWO = tuple(2**i for i in range(11))  # a table: dynamo of torch 2.1 knows no bits of sizes


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat every position of ``(N, C, h, w)`` over the positions of its cell: ``(N, C, H, W)``.

    ``F.interpolate(mode='nearest')`` is faster but finds the cell by a float32 ratio, exact for powers of two.
    """
    ratios = [[r for r in _POWERS_OF_TWO if known(c > 0) and known(s == r * c)] for s, c in zip(size, x.shape[2:])]
    if all(ratios):
        return x if ratios == [[1], [1]] else F.interpolate(x, size=size)
    rows, columns = (cell_of(s, c, x.device) for s, c in zip(size, x.shape[2:]))
    return x.index_select(2, rows).index_select(3, columns)
