# SPDX-License-Identifier: Apache-2.0
"""Point affiliation: mix a window of decoder points by their similarity to an encoder point."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .borders import ZERO, lay_border
from .checks import NORMALIZATIONS, check_point_affiliation, check_scores
from .library import choose
from .maps import memory_format

#: As in ops/: the places of the names. A table, because torch 2.1 cannot trace ``tuple.index``.
CODES = {name: code for code, name in enumerate(NORMALIZATIONS)}


@autocast_inputs
def point_affiliation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int = 5,
    normalization: str = 'softmax',
    border: str = 'zero',
    heads: int = 1,
) -> Tensor:
    """Upsample ``value`` by the similarity of each query with a window of keys.

    ``out[p] = sum_n h(<q[p], k[n]>) / sum_m h(<q[p], k[m]>) * v[n]`` with ``n, m`` in the ``K x K`` window around
    ``c(p) = (floor(y * h / H), floor(x * w / W))``. With the border ``'zero'`` a key outside the map is a zero vector:
    its score is 0, it takes part in the normalisation, and its value is 0.

    Args:
        query: Projected guide, ``(N, D, H, W)``, floating point. ``H`` and ``W`` are the output's size: any, smaller
            than ``h`` and ``w`` too.
        key: Projected feature, ``(N, D, h, w)``, dtype and device of ``query``.
        value: Feature to upsample, ``(N, C, h, w)``, dtype and device of ``query``.
        kernel_size: Window side in positions of the feature, odd, 1 to 15.
        normalization: ``h``: ``'softmax'`` (exponential), ``'relu'``, ``'sigmoid'`` or ``'softplus'``; the last three
            add ``sapa_mm.ops.maps.EPS`` to the sum.
        border: What windows find beyond the map: ``'zero'``, ``'clip'`` (nothing), ``'shift'`` (nothing: windows move
            inwards), ``'replicate'`` or ``'reflect'``. See :mod:`sapa_mm.ops.borders`.
        heads: Affiliations side by side, each of ``D / heads`` neighbouring channels of query and key that mix
            ``C / heads`` of the value; divides both. Maps in channels_last are copied for more than one.

    Returns:
        ``(N, C, H, W)``, dtype of ``value``; half and bfloat16 are accumulated in float32. Inside autocast all inputs
        are cast to its dtype first.

    Raises:
        TypeError: If an input is no floating-point tensor or the dtypes differ.
        ValueError: If ranks, batch sizes, channels of query and key, sizes of key and value or devices differ, or an
            option is out of range.

    Source: eq. (3) of https://arxiv.org/abs/2209.12866, stated there for ``H = 2h``.
    """
    check_point_affiliation(query, key, value, kernel_size, normalization, border, heads)
    layout = memory_format(value)
    if heads > 1:  # each is an image of its own
        query, key, value = (x.unflatten(1, (heads, -1)).flatten(0, 1) for x in (query, key, value))
    out = _affiliate(query, key, value, kernel_size, normalization, border)
    return out if heads == 1 else out.unflatten(0, (-1, heads)).flatten(1, 2).contiguous(memory_format=layout)


def _affiliate(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, normalization: str, border: str) -> Tensor:
    chosen = choose('point_affiliation', query, key, kernel_size, border)
    if chosen == 'reference':
        return reference.point_affiliation(query, key, value, kernel_size, normalization, border)
    code = CODES[normalization]
    if chosen == 'triton':
        return torch.ops.sapa_mm.triton_point_affiliation(query, key, value, kernel_size, code, ZERO)[0]
    query, key, value, border_code = lay_border(kernel_size, border, query, key, value)
    return torch.ops.sapa_mm.point_affiliation(query, key, value, kernel_size, code, border_code)[0]


@autocast_inputs
def affiliation_kernels(
    query: Tensor,
    key: Tensor,
    kernel_size: int = 5,
    normalization: str = 'softmax',
    border: str = 'zero',
    heads: int = 1,
) -> Tensor:
    """The kernels that :func:`point_affiliation` mixes with, to look at.

    Args:
        query: Projected guide, ``(N, D, H, W)``.
        key: Projected feature, ``(N, D, h, w)``.
        kernel_size: Window side, odd, 1 to 15.
        normalization: As in :func:`point_affiliation`.
        border: As in :func:`point_affiliation`.
        heads: As in :func:`point_affiliation`.

    Returns:
        ``(N, heads * K*K, H, W)``, head by head: weights of the window, row-major, top-left first; they sum to 1 over
        the window, what the border adds to it included.

    Raises:
        TypeError, ValueError: As :func:`point_affiliation`.
    """
    check_scores(query, key, kernel_size, normalization, border, heads)
    return reference.affiliation_kernels(query, key, kernel_size, normalization, border, heads)
