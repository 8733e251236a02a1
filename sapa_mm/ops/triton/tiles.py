# SPDX-License-Identifier: Apache-2.0
"""What the kernels of point affiliation are made of: tiles of positions and of cells, scores, weights, products.

A map is dense in one of two layouts. A tile is a few rows and columns of it, one after another; offsets inside a tile
fit in 32 bits, its corner is found in 64.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(corner, place, inside, first, channels, stride, BLOCK: tl.constexpr):
    """``(places, BLOCK)`` channels from ``first`` on, 0 where there are none and outside the map.

    ``corner`` points to the tile's corner in channel 0, ``place`` are offsets from there, ``stride`` is of channels.
    """
    c = tl.arange(0, BLOCK)
    start = corner + tl.cast(first, tl.int64) * stride
    return tl.load(start + place[:, None] + c[None, :] * stride, inside[:, None] & (first + c < channels)[None, :], 0.0)


@triton.jit
def store_tile(corner, place, inside, first, channels, stride, tile, BLOCK: tl.constexpr):
    """The way back of :func:`load_tile`."""
    c = tl.arange(0, BLOCK)
    start = corner + tl.cast(first, tl.int64) * stride
    there = inside[:, None] & (first + c < channels)[None, :]
    tl.store(start + place[:, None] + c[None, :] * stride, tile.to(corner.dtype.element_ty), there)


@triton.jit
def reaches(row, column, other_row, other_column, RADIUS: tl.constexpr):
    """``(places, others)``: whether the window around the one holds the other."""
    dy, dx = row[:, None] - other_row[None, :], column[:, None] - other_column[None, :]
    return (dy >= -RADIUS) & (dy <= RADIUS) & (dx >= -RADIUS) & (dx <= RADIUS)


@triton.jit
def positive(x, NORMALIZATION: tl.constexpr):
    """What a score counts before the sum: relu, sigmoid or softplus, by the numbers of ops/normalization.h."""
    if NORMALIZATION == 1:
        return tl.where(x < 0, 0.0, x)
    e = tl.exp(-tl.abs(x))
    if NORMALIZATION == 2:
        return tl.where(x < 0, e, 1.0) / (1 + e)
    # log(1 + e), of which log alone would keep no digits where e is small
    grown = 1 + e
    rest = tl.where(grown == 1, e, tl.log(grown) * (e / tl.where(grown == 1, 1.0, grown - 1)))
    return tl.where(x < 0, 0.0, x) + rest


@triton.jit
def positive_slope(x, NORMALIZATION: tl.constexpr):
    if NORMALIZATION == 1:
        return tl.where(x > 0, 1.0, tl.where(x == x, 0.0, x))
    e = tl.exp(-tl.abs(x))
    y = tl.where(x < 0, e, 1.0) / (1 + e)
    return y * (1 - y) if NORMALIZATION == 2 else y


@triton.jit
def add_product(sums, weights, within, x, EXACT: tl.constexpr):
    """``sums + weights @ x`` for ``weights`` ``(places, others)`` that are 0 where not ``within`` their window.

    On tensor cores what is no number leaves its window, as 0 * NaN, and weights beyond the range of ``x`` overflow.
    ``EXACT`` adds one of the others after the other, to those sums alone whose window holds it.
    """
    if EXACT:
        for i in range(x.shape[0]):
            here = tl.arange(0, x.shape[0]) == i
            weight = tl.sum(tl.where(here[None, :], weights, 0.0), 1)
            holds = tl.sum(tl.where(here[None, :] & within, 1, 0), 1) > 0
            vector = tl.sum(tl.where(here[:, None], x.to(tl.float32), 0.0), 0)
            sums = tl.where(holds[:, None], sums + weight[:, None] * vector[None, :], sums)
        return sums
    return tl.dot(weights.to(x.dtype), x, sums)


@triton.jit
def all_finite(x):
    return tl.min((tl.abs(x) < float('inf')).to(tl.int32)) == 1
