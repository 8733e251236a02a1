# SPDX-License-Identifier: Apache-2.0
"""Point affiliation: mix a window of decoder points by their similarity to an encoder point."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import NORMALIZATIONS, check_point_affiliation
from .library import choose

#: As in ops/: the places of the names. A table, because torch 2.1 cannot trace ``tuple.index``.
CODES = {name: code for code, name in enumerate(NORMALIZATIONS)}


@autocast_inputs
def point_affiliation(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int = 5, normalization: str = 'softmax'
) -> Tensor:
    """Upsample ``value`` by the similarity of each query with a window of keys.

    ``out[p] = sum_n h(<q[p], k[n]>) / sum_m h(<q[p], k[m]>) * v[n]`` with ``n, m`` in the ``K x K`` window around
    ``c(p) = (floor(y * h / H), floor(x * w / W))``. A key outside the map is a zero vector: its score is 0, it takes
    part in the normalisation, and its value is 0.

    Args:
        query: Projected guide, ``(N, D, H, W)``, floating point. ``H`` and ``W`` are the output's size: any, smaller
            than ``h`` and ``w`` too.
        key: Projected feature, ``(N, D, h, w)``, dtype and device of ``query``.
        value: Feature to upsample, ``(N, C, h, w)``, dtype and device of ``query``.
        kernel_size: Window side in positions of the feature, odd, 1 to 15.
        normalization: ``h``: ``'softmax'`` (exponential), ``'relu'``, ``'sigmoid'`` or ``'softplus'``; the last three
            add ``sapa_mm.ops.maps.EPS`` to the sum.

    Returns:
        ``(N, C, H, W)``, dtype of ``value``; half and bfloat16 are accumulated in float32. Inside autocast all inputs
        are cast to its dtype first.

    Raises:
        TypeError: If an input is no floating-point tensor or the dtypes differ.
        ValueError: If ranks, batch sizes, channels of query and key, sizes of key and value or devices differ, or an
            option is out of range.

    Source: eq. (3) of https://arxiv.org/abs/2209.12866, stated there for ``H = 2h``.
    """
    check_point_affiliation(query, key, value, kernel_size, normalization)
    chosen = choose('point_affiliation', query, key, kernel_size)
    if chosen == 'reference':
        return reference.point_affiliation(query, key, value, kernel_size, normalization)
    code = CODES[normalization]
    if chosen == 'triton':
        return torch.ops.sapa_mm.triton_point_affiliation(query, key, value, kernel_size, code)[0]
    return torch.ops.sapa_mm.point_affiliation(query, key, value, kernel_size, code)[0]


@autocast_inputs
def affiliation_kernels(query: Tensor, key: Tensor, kernel_size: int = 5, normalization: str = 'softmax') -> Tensor:
    """The kernels that :func:`point_affiliation` mixes with, to look at.

    Args:
        query: Projected guide, ``(N, D, H, W)``.
        key: Projected feature, ``(N, D, h, w)``.
        kernel_size: Window side, odd, 1 to 15.
        normalization: As in :func:`point_affiliation`.

    Returns:
        ``(N, K*K, H, W)``: weights of the window, row-major, top-left first; they sum to 1 over the window, positions
        outside the map included.

    Raises:
        TypeError, ValueError: As :func:`point_affiliation`.
    """
    return reference.affiliation_kernels(query, key, kernel_size, normalization)
