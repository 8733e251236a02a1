# SPDX-License-Identifier: Apache-2.0
"""What the kernels of point affiliation are made of: tiles of positions and of cells, scores, weights, products.

A map is dense in one of two layouts. A tile is a few rows and columns of it, one after another. Addresses have 64 bits,
offsets in rows and columns 32.
"""

import math

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1 / math.log(2))


@triton.jit
def corner(x, n, y, x0, stride_n, stride_y, stride_x):
    """Where a tile of a map starts, in channel 0."""
    return x + n * stride_n + tl.cast(y, tl.int64) * stride_y + tl.cast(x0, tl.int64) * stride_x


@triton.jit
def places(dy, dx, stride_y, stride_x):
    """Offsets of a tile from its corner. In 64 bits neighbours share an address: they differ by a constant."""
    return tl.cast(dy, tl.int64) * stride_y + tl.cast(dx, tl.int64) * stride_x


@triton.jit
def load_tile(corner, place, inside, first, channels, stride, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """``(places, BLOCK)`` channels from ``first`` on, 0 where there are none and outside the map.

    ``place`` are offsets from the corner, ``stride`` is of channels; a ``WHOLE`` number of blocks needs no mask.
    """
    c = tl.arange(0, BLOCK).to(tl.int64)
    start = corner + tl.cast(first, tl.int64) * stride
    there = inside[:, None] if WHOLE else inside[:, None] & (first + c < channels)[None, :]
    return tl.load(start + place[:, None] + c[None, :] * stride, there, 0.0)


@triton.jit
def store_tile(corner, place, inside, first, channels, stride, tile, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """The way back of :func:`load_tile`."""
    c = tl.arange(0, BLOCK).to(tl.int64)
    start = corner + tl.cast(first, tl.int64) * stride
    there = inside[:, None] if WHOLE else inside[:, None] & (first + c < channels)[None, :]
    tl.store(start + place[:, None] + c[None, :] * stride, tile.to(corner.dtype.element_ty), there)


@triton.jit
def cells_of(first, place, SIDE: tl.constexpr, RATIO: tl.constexpr):
    """``(first + place % SIDE) // RATIO`` and the remainder, in such a form that Triton sees runs of equal cells.

    ``first`` is a multiple of ``SIDE``, the side of a tile of positions.
    """
    if SIDE % RATIO == 0:
        return first // RATIO + place // RATIO % (SIDE // RATIO), place % RATIO
    return (first + place % SIDE) // RATIO, (first + place % SIDE) % RATIO


@triton.jit
def reaches(dy, dx, RADIUS: tl.constexpr):
    """Whether a window reaches so far from its centre: what is below 0 is large without a sign."""
    return ((dy + RADIUS).to(tl.uint32) <= 2 * RADIUS) & ((dx + RADIUS).to(tl.uint32) <= 2 * RADIUS)


@triton.jit
def tap_corner(taps, n, y, x0, H, w, RADIUS: tl.constexpr, RATIO_X: tl.constexpr):
    """Of an array ``(N, H, w, taps, RATIO_X)``, at the row ``y`` of positions and the column ``x0`` of cells."""
    return taps + ((n * H + y) * w + x0) * ((2 * RADIUS + 1) * (2 * RADIUS + 1) * RATIO_X)


@triton.jit
def tap_places(dy, row, column, phase, cell_dy, cell_dx, w, RADIUS: tl.constexpr, RATIO_X: tl.constexpr):
    """Offsets from there of positions and of cells: the sum of two is where the tap of the one on the other lies.

    Cells and the cells ``(row, column)`` of positions are counted from one corner.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    first = ((dy * w + column) * SIDE + RADIUS - row) * SIDE + RADIUS - column
    return first * RATIO_X + phase, (cell_dy * SIDE + cell_dx) * RATIO_X


@triton.jit
def exp_less(x, top):
    """``exp(x - top)``, but for what is rounded of ``top``: that is the same for all ``x``."""
    return tl.exp2(tl.fma(x, _LOG2E, -top * _LOG2E))


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
    return tl.sum(x * 0.0) == 0  # infinity * 0 is NaN
