# SPDX-License-Identifier: Apache-2.0
"""What windows find beyond the map, and how the compiled operators are told.

``'zero'``
    Zero vectors: their score is 0 and takes part in the normalisation, their value is 0. SAPA and CARAFE.
``'clip'``
    Nothing: what lies outside takes no part.
``'shift'``
    Nothing, and the window keeps its size: it moves inwards until it lies inside the map, the rule of neighbourhood
    attention. A map smaller than the window is in it whole.
``'replicate'``
    The nearest position of the map.
``'reflect'``
    The map mirrored at its outer positions, however far.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .maps import memory_format

BORDERS = ('zero', 'clip', 'shift', 'replicate', 'reflect')

# ops/window.h: beyond the map are zeros; the maps bring their border along; windows move inwards
ZERO, GIVEN, SHIFT = range(3)


def extend(x: Tensor, radius: int, border: str) -> Tensor:
    """Continue a map by ``radius`` positions on each side: ``(N, C, h + 2 radius, w + 2 radius)``.

    Unlike ``F.pad``, it reflects by more than the map's size too.
    """
    if border not in ('replicate', 'reflect'):
        return F.pad(x, (radius,) * 4)
    layout = memory_format(x)
    for dim in (2, 3):
        last = x.shape[dim] - 1
        place = torch.arange(-radius, last + 1 + radius, device=x.device)
        if border == 'replicate':
            place = place.clamp(0, last)
        else:
            place = place % max(2 * last, 1)
            place = torch.where(place <= last, place, 2 * last - place)
        x = x.index_select(dim, place)
    return x.contiguous(memory_format=layout)


def pad(x: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    """``F.pad`` with zeros; the layout stays."""
    return F.pad(x, sides).contiguous(memory_format=memory_format(x))


def lay_border(kernel_size: int, border: str, query: Tensor, key: Tensor, value: Tensor):
    """What the compiled affiliation takes for a border: query, key, value and the number of the border."""
    radius, size = kernel_size // 2, key.shape[2:]
    if border == 'zero' or radius == 0:
        return query, key, value, ZERO
    if border in ('replicate', 'reflect'):
        return query, extend(key, radius, border), extend(value, radius, border), GIVEN
    if border == 'shift' and min(size) >= kernel_size:
        return query, key, value, SHIFT
    # One channel more gives keys that are not in the map the least score there is, and so the weight 0.
    missing = [max(kernel_size - side, 0) for side in reversed(size)]
    sides = (radius,) * 4 if border == 'clip' else (0, missing[0], 0, missing[1])
    outside = F.pad(key.new_zeros(key.shape[0], 1, *size), sides, value=torch.finfo(key.dtype).min / 2)
    query = torch.cat([query, torch.ones_like(query[:, :1])], 1)
    key = torch.cat([pad(key, sides), outside], 1)
    return query, key, pad(value, sides), GIVEN if border == 'clip' else SHIFT


def lay_assembly_border(kernel_size: int, border: str, feature: Tensor) -> tuple[Tensor, int]:
    """The same for the compiled assembly, whose kernels are used as given: feature and the number of the border."""
    if border in ('zero', 'clip') or kernel_size == 1:
        return feature, ZERO
    if border in ('replicate', 'reflect'):
        return extend(feature, kernel_size // 2, border), GIVEN
    missing = [max(kernel_size - side, 0) for side in reversed(feature.shape[2:])]
    return pad(feature, (0, missing[0], 0, missing[1])) if any(missing) else feature, SHIFT
