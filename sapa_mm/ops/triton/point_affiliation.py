# SPDX-License-Identifier: Apache-2.0
"""Point affiliation for half and bfloat16 on tensor cores, for integer ratios of the sizes.

Forward and the gradient of the query: a program owns a tile of positions and scores all of them against the union of
their windows, one product of matrices; what is outside a position's own window gets the weight 0. The tile is as large
as a union of 8 x 8 cells allows. Gradients of key and value: a program owns 8 x 8 cells and collects from the positions
whose windows hold them, in one order, without atomics. Scores are computed again in both; two numbers for each position
are all that the one hands the other.

Weights and gradients of scores are rounded to the dtype of the maps before they are multiplied; sums are float32. Where
a sum comes out infinite or NaN, the program computes it once more without tensor cores (``tiles.add_product``).
"""

import torch
import triton
import triton.language as tl

from ..borders import ZERO
from ..checks import NORMALIZATIONS, check_point_affiliation, check_tensor
from ..maps import EPS
from . import CELLS, POSITIONS, serves, tile_sides
from .launching import block, dense, empty_following, on_device_of
from .tiles import add_product, all_finite, load_tile, positive, positive_slope, reaches, store_tile

CHANNELS = 32  # at a time
#: Of a program that gathers: channels of the value, rows of a tile of positions, warps. The larger takes half of the
#: instructions, and its sums leave the registers before sm_90.
GATHERED, GATHERED_BEFORE_SM_90 = (128, POSITIONS, 8), (64, 4, 4)
#: Programs that keep a large GPU busy; with fewer tiles the channels of the value are split.
ENOUGH_PROGRAMS = 512
_EPS = tl.constexpr(EPS)


@triton.jit
def add_scores(scores, rows, row_place, row_inside, row_stride, columns, place, inside, stride, D, BLOCK: tl.constexpr):
    """Inner products of the vectors of two tiles."""
    for d in range(0, D, BLOCK):
        a = load_tile(rows, row_place, row_inside, d, D, row_stride, BLOCK)
        b = load_tile(columns, place, inside, d, D, stride, BLOCK)
        scores = tl.dot(a, tl.trans(b), scores)
    return scores


@triton.jit
def store_products(
    weights, within, source, source_place, source_inside, source_stride, target, place, inside, stride,
    first, last, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Store ``weights @ source`` for the channels from ``first`` to ``last``; return whether all of it is finite."""
    finite = tl.full([weights.shape[0], BLOCK], 1, tl.int1)
    for c in range(first, last, BLOCK):
        x = load_tile(source, source_place, source_inside, c, last, source_stride, BLOCK)
        sums = add_product(tl.zeros([weights.shape[0], BLOCK], tl.float32), weights, within, x, EXACT)
        store_tile(target, place, inside, c, last, stride, sums, BLOCK)
        finite = finite & (tl.abs(sums) < float('inf'))
    return tl.min(finite.to(tl.int32)) == 1


@triton.jit
def forward_kernel(
    query,  # (N, D, H, W), like all maps in any layout that is dense
    key,  # (N, D, h, w)
    value,  # (N, C, h, w)
    output,  # (N, C, H, W)
    normalizer,  # (N, H, W)
    D, C, H, W, h, w, channels_each,
    query_n, query_c, query_y, query_x, key_n, key_c, key_y, key_x,
    value_n, value_c, value_y, value_x, output_n, output_c, output_y, output_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr, NORMALIZATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # (n, y0, x0) is the corner of a tile of positions; the second axis of programs splits the channels of the value
    tiles_x = tl.cdiv(W, COLUMNS)
    tile = tl.program_id(0)
    x0 = tile % tiles_x * COLUMNS
    y0 = tile // tiles_x % tl.cdiv(H, ROWS) * ROWS
    n = tl.cast(tile // tiles_x // tl.cdiv(H, ROWS), tl.int64)
    p = tl.arange(0, ROWS * COLUMNS)
    dy, dx = p // COLUMNS, p % COLUMNS
    inside = (y0 + dy < H) & (x0 + dx < W)
    row, column = (y0 + dy) // RATIO_Y, (x0 + dx) // RATIO_X
    cell_y0, cell_x0 = y0 // RATIO_Y - RADIUS, x0 // RATIO_X - RADIUS
    cell = tl.arange(0, CELLS * CELLS)
    cell_dy, cell_dx = cell // CELLS, cell % CELLS
    cell_y, cell_x = cell_y0 + cell_dy, cell_x0 + cell_dx
    cell_inside = (cell_y >= 0) & (cell_y < h) & (cell_x >= 0) & (cell_x < w)
    within = reaches(row, column, cell_y, cell_x, RADIUS)

    scores = add_scores(
        tl.zeros([ROWS * COLUMNS, CELLS * CELLS], tl.float32),
        query + n * query_n + tl.cast(y0, tl.int64) * query_y + tl.cast(x0, tl.int64) * query_x,
        dy * query_y + dx * query_x, inside, query_c,
        key + n * key_n + tl.cast(cell_y0, tl.int64) * key_y + tl.cast(cell_x0, tl.int64) * key_x,
        cell_dy * key_y + cell_dx * key_x, cell_inside, key_c, D, BLOCK_D,
    )  # fmt: skip
    if NORMALIZATION == 0:
        top = tl.max(tl.where(within, scores, float('-inf')), 1)
        weights = tl.where(within, tl.exp(scores - top[:, None]), 0.0)
        total = tl.sum(weights, 1)
        saved = top + tl.log(total)
    else:
        weights = tl.where(within, positive(scores, NORMALIZATION), 0.0)
        total = tl.sum(weights, 1) + _EPS
        saved = total
    weights = weights / total[:, None]
    if tl.program_id(1) == 0:
        tl.store(normalizer + (n * H + y0) * W + x0 + dy * W + dx, saved, inside)

    source = value + n * value_n + tl.cast(cell_y0, tl.int64) * value_y + tl.cast(cell_x0, tl.int64) * value_x
    source_place = cell_dy * value_y + cell_dx * value_x
    target = output + n * output_n + tl.cast(y0, tl.int64) * output_y + tl.cast(x0, tl.int64) * output_x
    place = dy * output_y + dx * output_x
    first = tl.program_id(1) * channels_each
    last = tl.minimum(first + channels_each, C)
    finite = store_products(
        weights, within, source, source_place, cell_inside, value_c, target, place, inside, output_c,
        first, last, BLOCK_C, False,
    )  # fmt: skip
    if not finite:
        store_products(
            weights, within, source, source_place, cell_inside, value_c, target, place, inside, output_c,
            first, last, BLOCK_C, True,
        )  # fmt: skip


@triton.jit
def query_backward_kernel(
    grad,  # (N, C, H, W)
    query,  # (N, D, H, W)
    key,  # (N, D, h, w)
    value,  # (N, C, h, w)
    normalizer,  # (N, H, W)
    grad_query,  # (N, D, H, W)
    scale,  # (N, H, W): weight = scale * h(score)
    mean,  # (N, H, W): of the gradients of the weights, by the weights
    D, C, H, W, h, w,
    grad_n, grad_c, grad_y, grad_x, query_n, query_c, query_y, query_x, key_n, key_c, key_y, key_x,
    value_n, value_c, value_y, value_x, grad_query_n, grad_query_c, grad_query_y, grad_query_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr, NORMALIZATION: tl.constexpr,
    NEEDS_QUERY: tl.constexpr, NEEDS_SCORES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # (n, y0, x0) is the corner of a tile of positions
    tiles_x = tl.cdiv(W, COLUMNS)
    tile = tl.program_id(0)
    x0 = tile % tiles_x * COLUMNS
    y0 = tile // tiles_x % tl.cdiv(H, ROWS) * ROWS
    n = tl.cast(tile // tiles_x // tl.cdiv(H, ROWS), tl.int64)
    p = tl.arange(0, ROWS * COLUMNS)
    dy, dx = p // COLUMNS, p % COLUMNS
    inside = (y0 + dy < H) & (x0 + dx < W)
    row, column = (y0 + dy) // RATIO_Y, (x0 + dx) // RATIO_X
    cell_y0, cell_x0 = y0 // RATIO_Y - RADIUS, x0 // RATIO_X - RADIUS
    cell = tl.arange(0, CELLS * CELLS)
    cell_dy, cell_dx = cell // CELLS, cell % CELLS
    cell_y, cell_x = cell_y0 + cell_dy, cell_x0 + cell_dx
    cell_inside = (cell_y >= 0) & (cell_y < h) & (cell_x >= 0) & (cell_x < w)
    within = reaches(row, column, cell_y, cell_x, RADIUS)
    key_corner = key + n * key_n + tl.cast(cell_y0, tl.int64) * key_y + tl.cast(cell_x0, tl.int64) * key_x
    key_place = cell_dy * key_y + cell_dx * key_x

    scores = add_scores(
        tl.zeros([ROWS * COLUMNS, CELLS * CELLS], tl.float32),
        query + n * query_n + tl.cast(y0, tl.int64) * query_y + tl.cast(x0, tl.int64) * query_x,
        dy * query_y + dx * query_x, inside, query_c, key_corner, key_place, cell_inside, key_c, D, BLOCK_D,
    )  # fmt: skip
    position = (n * H + y0) * W + x0 + dy * W + dx
    saved = tl.load(normalizer + position, inside, 1.0)
    if NORMALIZATION == 0:
        weights = tl.where(within, tl.exp(scores - saved[:, None]), 0.0)
        # A large log-normalizer is rounded coarsely, for all taps alike: dividing by the sum takes that out again.
        factor = 1 / tl.sum(weights, 1)
    else:
        weights = tl.where(within, positive(scores, NORMALIZATION), 0.0)
        factor = 1 / saved
    tl.store(scale + position, factor, inside)
    weights = weights * factor[:, None]
    if NEEDS_SCORES:
        grads = add_scores(
            tl.zeros([ROWS * COLUMNS, CELLS * CELLS], tl.float32),
            grad + n * grad_n + tl.cast(y0, tl.int64) * grad_y + tl.cast(x0, tl.int64) * grad_x,
            dy * grad_y + dx * grad_x, inside, grad_c,
            value + n * value_n + tl.cast(cell_y0, tl.int64) * value_y + tl.cast(cell_x0, tl.int64) * value_x,
            cell_dy * value_y + cell_dx * value_x, cell_inside, value_c, C, BLOCK_C,
        )  # fmt: skip
        average = tl.sum(tl.where(within, weights * grads, 0.0), 1)
        tl.store(mean + position, average, inside)
        if NEEDS_QUERY:
            slope = weights
            if NORMALIZATION != 0:
                slope = positive_slope(scores, NORMALIZATION) * factor[:, None]
            grads = tl.where(within, slope * (grads - average[:, None]), 0.0)
            target = grad_query + n * grad_query_n
            target += tl.cast(y0, tl.int64) * grad_query_y + tl.cast(x0, tl.int64) * grad_query_x
            place = dy * grad_query_y + dx * grad_query_x
            finite = store_products(
                grads, within, key_corner, key_place, cell_inside, key_c, target, place, inside, grad_query_c,
                0, D, BLOCK_D, False,
            )  # fmt: skip
            if not finite:
                store_products(
                    grads, within, key_corner, key_place, cell_inside, key_c, target, place, inside, grad_query_c,
                    0, D, BLOCK_D, True,
                )  # fmt: skip


@triton.jit
def gather(
    grad, query, key, value, normalizer, scale, mean, y0, x0, channel, dim, C, D, H, W, h, w,
    grad_c, grad_y, grad_x, query_c, query_y, query_x, key_c, key_y, key_x, value_c, value_y, value_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr, NORMALIZATION: tl.constexpr,
    NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys, ``BLOCK_D`` channels from ``dim`` on, and of the values, ``BLOCK_C`` from ``channel`` on.

    That of the keys is the part of these channels of the value: a gradient of scores is a sum over all of them.
    """
    cell = tl.arange(0, CELLS * CELLS)
    cell_dy, cell_dx = cell // CELLS, cell % CELLS
    cell_y, cell_x = y0 + cell_dy, x0 + cell_dx
    cell_inside = (cell_y < h) & (cell_x < w)
    key += tl.cast(y0, tl.int64) * key_y + tl.cast(x0, tl.int64) * key_x
    value += tl.cast(y0, tl.int64) * value_y + tl.cast(x0, tl.int64) * value_x
    key_place, value_place = cell_dy * key_y + cell_dx * key_x, cell_dy * value_y + cell_dx * value_x
    p = tl.arange(0, ROWS * COLUMNS)
    dy, dx = p // COLUMNS, p % COLUMNS

    grad_keys = tl.zeros([CELLS * CELLS, BLOCK_D], tl.float32)
    grad_values = tl.zeros([CELLS * CELLS, BLOCK_C], tl.float32)
    # Positions whose windows may hold one of the cells, tile by tile.
    first_y, first_x = tl.maximum(y0 - RADIUS, 0) * RATIO_Y, tl.maximum(x0 - RADIUS, 0) * RATIO_X
    tiles_y = tl.cdiv(tl.minimum((y0 + CELLS + RADIUS) * RATIO_Y, H) - first_y, ROWS)
    tiles_x = tl.cdiv(tl.minimum((x0 + CELLS + RADIUS) * RATIO_X, W) - first_x, COLUMNS)
    for tile in range(tiles_y * tiles_x):
        ty, tx = first_y + tile // tiles_x * ROWS, first_x + tile % tiles_x * COLUMNS
        y, x = ty + dy, tx + dx
        inside = (y < H) & (x < W)
        within = reaches(cell_y, cell_x, y // RATIO_Y, x // RATIO_X, RADIUS) & inside[None, :]
        query_corner = query + tl.cast(ty, tl.int64) * query_y + tl.cast(tx, tl.int64) * query_x
        query_place = dy * query_y + dx * query_x
        scores = add_scores(
            tl.zeros([CELLS * CELLS, ROWS * COLUMNS], tl.float32),
            key, key_place, cell_inside, key_c, query_corner, query_place, inside, query_c, D, BLOCK_D,
        )  # fmt: skip
        position = tl.cast(ty, tl.int64) * W + tx + dy * W + dx
        factor = tl.load(scale + position, inside, 0.0)[None, :]
        if NORMALIZATION == 0:
            saved = tl.load(normalizer + position, inside, 0.0)[None, :]
            weights = tl.where(within, tl.exp(scores - saved) * factor, 0.0)
            slope = weights
        else:
            weights = tl.where(within, positive(scores, NORMALIZATION) * factor, 0.0)
            slope = positive_slope(scores, NORMALIZATION) * factor
        g = load_tile(
            grad + tl.cast(ty, tl.int64) * grad_y + tl.cast(tx, tl.int64) * grad_x,
            dy * grad_y + dx * grad_x, inside, channel, C, grad_c, BLOCK_C,
        )  # fmt: skip
        if NEEDS_VALUE:
            grad_values = add_product(grad_values, weights, within, g, EXACT)
        if NEEDS_KEY:
            v = load_tile(value, value_place, cell_inside, channel, C, value_c, BLOCK_C)
            grads = tl.dot(v, tl.trans(g))
            if channel == 0:
                grads -= tl.load(mean + position, inside, 0.0)[None, :]
            q = load_tile(query_corner, query_place, inside, dim, D, query_c, BLOCK_D)
            grad_keys = add_product(grad_keys, tl.where(within, slope * grads, 0.0), within, q, EXACT)
    return grad_keys, grad_values


@triton.jit
def gather_kernel(
    grad,  # (N, C, H, W)
    query,  # (N, D, H, W)
    key,  # (N, D, h, w)
    value,  # (N, C, h, w)
    normalizer,  # (N, H, W)
    scale,  # (N, H, W)
    mean,  # (N, H, W)
    grad_key,  # (parts, N, D, h, w): parts of the channels of the value, to be summed
    grad_value,  # (N, C, h, w)
    D, C, H, W, h, w,
    grad_n, grad_c, grad_y, grad_x, query_n, query_c, query_y, query_x, key_n, key_c, key_y, key_x,
    value_n, value_c, value_y, value_x,
    grad_key_p, grad_key_n, grad_key_c, grad_key_y, grad_key_x, grad_value_n, grad_value_c, grad_value_y, grad_value_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr, NORMALIZATION: tl.constexpr,
    NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # (n, y0, x0) is the corner of a tile of cells; the second axis of programs are parts of the channels of the value,
    # the third those of the key
    tiles_x = tl.cdiv(w, CELLS)
    tile = tl.program_id(0)
    x0 = tile % tiles_x * CELLS
    y0 = tile // tiles_x % tl.cdiv(h, CELLS) * CELLS
    n = tl.cast(tile // tiles_x // tl.cdiv(h, CELLS), tl.int64)
    part = tl.program_id(1)
    channel, dim = part * BLOCK_C, tl.program_id(2) * BLOCK_D
    grad += n * grad_n
    query += n * query_n
    key += n * key_n
    value += n * value_n
    normalizer += n * H * W
    scale += n * H * W
    mean += n * H * W
    keys, values = gather(
        grad, query, key, value, normalizer, scale, mean, y0, x0, channel, dim, C, D, H, W, h, w,
        grad_c, grad_y, grad_x, query_c, query_y, query_x, key_c, key_y, key_x, value_c, value_y, value_x,
        RATIO_Y, RATIO_X, RADIUS, NORMALIZATION, NEEDS_KEY, NEEDS_VALUE, ROWS, COLUMNS, CELLS, BLOCK_D, BLOCK_C, False,
    )  # fmt: skip
    if not (all_finite(keys) & all_finite(values)):
        keys, values = gather(
            grad, query, key, value, normalizer, scale, mean, y0, x0, channel, dim, C, D, H, W, h, w,
            grad_c, grad_y, grad_x, query_c, query_y, query_x, key_c, key_y, key_x, value_c, value_y, value_x,
            RATIO_Y, RATIO_X, RADIUS, NORMALIZATION, NEEDS_KEY, NEEDS_VALUE,
            ROWS, COLUMNS, CELLS, BLOCK_D, BLOCK_C, True,
        )  # fmt: skip
    cell = tl.arange(0, CELLS * CELLS)
    dy, dx = cell // CELLS, cell % CELLS
    inside = (y0 + dy < h) & (x0 + dx < w)
    if NEEDS_KEY:
        grad_key += tl.cast(part, tl.int64) * grad_key_p + n * grad_key_n
        grad_key += tl.cast(y0, tl.int64) * grad_key_y + tl.cast(x0, tl.int64) * grad_key_x
        store_tile(grad_key, dy * grad_key_y + dx * grad_key_x, inside, dim, D, grad_key_c, keys, BLOCK_D)
    if NEEDS_VALUE & (tl.program_id(2) == 0):
        grad_value += n * grad_value_n
        grad_value += tl.cast(y0, tl.int64) * grad_value_y + tl.cast(x0, tl.int64) * grad_value_x
        store_tile(grad_value, dy * grad_value_y + dx * grad_value_x, inside, channel, C, grad_value_c, values, BLOCK_C)


def options_of(query, key, kernel_size, normalization):
    rows, columns = tile_sides(query.shape[2:], key.shape[2:], kernel_size)
    return dict(
        RATIO_Y=query.shape[2] // key.shape[2],
        RATIO_X=query.shape[3] // key.shape[3],
        RADIUS=kernel_size // 2,
        NORMALIZATION=normalization,
        ROWS=rows,
        COLUMNS=columns,
        CELLS=CELLS,
        BLOCK_D=block(query.shape[1], CHANNELS),
    )


def check(query, key, value, kernel_size, normalization, border):
    """Before memory is touched: for callers of ``torch.ops``, since the public function has asked already."""
    if border != ZERO:
        raise ValueError(f'the Triton kernels have the border {ZERO} (zero) alone, got {border}')
    if normalization not in range(len(NORMALIZATIONS)):
        raise ValueError(f'normalization must be 0 to {len(NORMALIZATIONS) - 1}, got {normalization}')
    check_point_affiliation(query, key, value, kernel_size, NORMALIZATIONS[normalization], 'zero', 1)
    if query.numel() == 0 or not serves(query, key, kernel_size):
        raise ValueError(
            'the Triton kernels need maps with elements, integer ratios and windows that fit into a tile, got '
            f'query {tuple(query.shape)}, key {tuple(key.shape)} and kernel_size {kernel_size}'
        )


def forward(query, key, value, kernel_size, normalization, border):
    """As ``torch.ops.sapa_mm.point_affiliation``, for what :func:`sapa_mm.ops.triton.fits` lets through."""
    check(query, key, value, kernel_size, normalization, border)
    N, D, H, W = query.shape
    C, h, w = value.shape[1:]
    query, key, value = map(dense, (query, key, value))
    output = empty_following(value, (N, C, H, W))
    normalizer = query.new_empty(N, H, W, dtype=torch.float32)
    options = options_of(query, key, kernel_size, normalization)
    block_c = block(C, CHANNELS)
    tiles = N * triton.cdiv(H, options['ROWS']) * triton.cdiv(W, options['COLUMNS'])
    parts = max(1, min(triton.cdiv(C, block_c), ENOUGH_PROGRAMS // tiles))
    channels_each = triton.cdiv(triton.cdiv(max(C, 1), parts), block_c) * block_c
    with on_device_of(query):
        forward_kernel[(tiles, triton.cdiv(max(C, 1), channels_each))](
            query, key, value, output, normalizer, D, C, H, W, h, w, channels_each,
            *query.stride(), *key.stride(), *value.stride(), *output.stride(),
            **options, BLOCK_C=block_c, num_warps=8,
        )  # fmt: skip
    return output, normalizer


def backward(grad, query, key, value, normalizer, kernel_size, normalization, border, needs_grad):
    """As ``torch.ops.sapa_mm._point_affiliation_backward``."""
    check(query, key, value, kernel_size, normalization, border)
    needs_query, needs_key, needs_value = needs_grad
    N, D, H, W = query.shape
    C, h, w = value.shape[1:]
    check_tensor('grad', grad, (N, C, H, W), query)
    check_tensor('normalizer', normalizer, (N, H, W), query, torch.float32)
    inputs = query, key, value
    grads = [empty_following(x, x.shape if needed else (0,)) for x, needed in zip(inputs, needs_grad)]
    if not any(needs_grad):
        return tuple(grads)
    grad, query, key, value = map(dense, (grad, query, key, value))
    normalizer = normalizer.contiguous()
    scale, mean = torch.empty_like(normalizer), torch.empty_like(normalizer)
    strides = [s for x in (grad, query, key, value) for s in x.stride()]
    options = options_of(query, key, kernel_size, normalization)
    with on_device_of(query):
        query_backward_kernel[(N * triton.cdiv(H, options['ROWS']) * triton.cdiv(W, options['COLUMNS']),)](
            grad, query, key, value, normalizer, grads[0] if needs_query else query, scale, mean, D, C, H, W, h, w,
            *strides, *(grads[0] if needs_query else query).stride(),
            **options, BLOCK_C=block(C, CHANNELS), NEEDS_QUERY=needs_query, NEEDS_SCORES=needs_query or needs_key,
            num_warps=8,
        )  # fmt: skip
        if needs_key or needs_value:
            large = not query.is_cuda or torch.cuda.get_device_capability(query.device) >= (9, 0)
            most_channels, gathered_rows, warps = GATHERED if large else GATHERED_BEFORE_SM_90
            options.update(ROWS=gathered_rows, COLUMNS=POSITIONS)
            block_c = block(C, most_channels)
            parts, dims = triton.cdiv(max(C, 1), block_c), triton.cdiv(D, options['BLOCK_D']) if needs_key else 1
            # With several parts they are summed in float32, in one order.
            grad_key = grads[1][None] if parts == 1 else grads[1].new_empty(parts, *key.shape, dtype=torch.float32)
            if not needs_key:
                grad_key = key[None]
            grad_value = grads[2] if needs_value else value
            gather_kernel[(N * triton.cdiv(h, CELLS) * triton.cdiv(w, CELLS), parts, dims)](
                grad, query, key, value, normalizer, scale, mean, grad_key, grad_value, D, C, H, W, h, w,
                *strides, *grad_key.stride(), *grad_value.stride(),
                **options, BLOCK_C=block_c, NEEDS_KEY=needs_key, NEEDS_VALUE=needs_value, num_warps=warps,
            )  # fmt: skip
            if needs_key and parts > 1:
                grads[1].copy_(grad_key.sum(0))
    return tuple(grads)
