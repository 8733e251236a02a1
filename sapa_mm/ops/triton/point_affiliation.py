# SPDX-License-Identifier: Apache-2.0
"""Point affiliation for half and bfloat16 on tensor cores, for integer ratios of the sizes.

Forward and the gradient of the query: a program owns a tile of positions and scores all of them against the union of
their windows, one product of matrices; what is outside a position's own window gets the weight 0. The tile is as large
as a union of 8 x 8 cells allows. Gradients of key and value: a program owns 8 x 8 cells and collects from the positions
whose windows hold them, in one order, without atomics. Weights and gradients of scores are handed over by the kernel of
the query, so that what gathers is a product of matrices alone.

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
from .tiles import (
    add_product,
    all_finite,
    cells_of,
    corner,
    exp_less,
    load_tile,
    places,
    positive,
    positive_slope,
    reaches,
    store_tile,
    tap_corner,
    tap_places,
)

#: Channels at a time: of a mixture; of a product that is summed over them and of a program that gathers, each where
#: neighbours are copied together (``aligned``) and where they pass through registers one by one.
MIXED, SUMMED, GATHERED = 32, (64, 32), (256, 64)
OF_POSITIONS = dict(num_warps=4, num_stages=2)
#: Programs that keep a large GPU busy; with fewer tiles the channels of the value are split.
ENOUGH_PROGRAMS = 512
_EPS = tl.constexpr(EPS)


@triton.jit
def add_products(
    rows, row_place, row_inside, row_stride, columns, place, inside, stride, channels,
    BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Inner products of the vectors of two tiles."""
    sums = tl.zeros([row_place.shape[0], place.shape[0]], tl.float32)
    for c in range(0, channels, BLOCK):
        a = load_tile(rows, row_place, row_inside, c, channels, row_stride, BLOCK, WHOLE)
        b = load_tile(columns, place, inside, c, channels, stride, BLOCK, WHOLE)
        sums = tl.dot(a, tl.trans(b), sums)
    return sums


@triton.jit
def store_mixtures(
    weights, within, source, source_place, source_inside, source_stride, target, place, inside, stride,
    first, last, BLOCK: tl.constexpr, WHOLE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Store ``weights @ source`` for the channels from ``first`` to ``last``; return whether all of it is finite."""
    check = tl.zeros([weights.shape[0], BLOCK], tl.float32)
    for c in range(first, last, BLOCK):
        x = load_tile(source, source_place, source_inside, c, last, source_stride, BLOCK, WHOLE)
        sums = add_product(tl.zeros([weights.shape[0], BLOCK], tl.float32), weights, within, x, EXACT)
        store_tile(target, place, inside, c, last, stride, sums, BLOCK, WHOLE)
        check += sums * 0.0  # stays 0 for numbers
    return all_finite(check)


@triton.jit
def tile_of_positions(
    H, W, h, w, RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Of this program: its image, a corner, offsets from there and what is inside the map, for positions and for cells.

    The cells are the union of the windows. Then the cell of each position, counted from their corner, and where in it
    the position lies; last, which cells are within each window.
    """
    tiles_x = tl.cdiv(W, COLUMNS)
    tile = tl.program_id(0)
    x0 = tile % tiles_x * COLUMNS
    y0 = tile // tiles_x % tl.cdiv(H, ROWS) * ROWS
    n = tl.cast(tile // tiles_x // tl.cdiv(H, ROWS), tl.int64)
    p = tl.arange(0, ROWS * COLUMNS)
    dy, dx = p // COLUMNS, p % COLUMNS
    inside = (y0 + dy < H) & (x0 + dx < W)
    cell_y0, cell_x0 = y0 // RATIO_Y - RADIUS, x0 // RATIO_X - RADIUS
    row, _ = cells_of(y0, dy, ROWS, RATIO_Y)
    column, phase = cells_of(x0, p, COLUMNS, RATIO_X)
    cell = tl.arange(0, CELLS * CELLS)
    cell_dy, cell_dx = cell // CELLS, cell % CELLS
    cell_y, cell_x = cell_y0 + cell_dy, cell_x0 + cell_dx
    cell_inside = (cell_y >= 0) & (cell_y < h) & (cell_x >= 0) & (cell_x < w)
    row, column = row - cell_y0, column - cell_x0
    within = reaches(cell_dy[None, :] - row[:, None], cell_dx[None, :] - column[:, None], RADIUS)
    cells = cell_y0, cell_x0, cell_dy, cell_dx, cell_inside
    return (n, y0, x0, dy, dx, inside), cells, (row, column, phase), within


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
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr,
    BLOCK_D: tl.constexpr, WHOLE_D: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE_C: tl.constexpr,
):  # fmt: skip
    # A program owns a tile of positions; the second axis of programs splits the channels of the value.
    positions, cells, _, within = tile_of_positions(H, W, h, w, RATIO_Y, RATIO_X, RADIUS, ROWS, COLUMNS, CELLS)
    n, y0, x0, dy, dx, inside = positions
    cell_y0, cell_x0, cell_dy, cell_dx, cell_inside = cells
    scores = add_products(
        corner(query, n, y0, x0, query_n, query_y, query_x), places(dy, dx, query_y, query_x), inside, query_c,
        corner(key, n, cell_y0, cell_x0, key_n, key_y, key_x), places(cell_dy, cell_dx, key_y, key_x), cell_inside,
        key_c, D, BLOCK_D, WHOLE_D,
    )  # fmt: skip
    if NORMALIZATION == 0:
        top = tl.max(tl.where(within, scores, float('-inf')), 1)
        weights = tl.where(within, exp_less(scores, top[:, None]), 0.0)
        total = tl.sum(weights, 1)
        saved = top + tl.log(total)
    else:
        weights = tl.where(within, positive(scores, NORMALIZATION), 0.0)
        total = tl.sum(weights, 1) + _EPS
        saved = total
    weights = weights * (1 / total)[:, None]
    if tl.program_id(1) == 0:
        tl.store(normalizer + (n * H + y0) * W + x0 + dy * W + dx, saved, inside)

    source = corner(value, n, cell_y0, cell_x0, value_n, value_y, value_x)
    source_place = places(cell_dy, cell_dx, value_y, value_x)
    target = corner(output, n, y0, x0, output_n, output_y, output_x)
    place = places(dy, dx, output_y, output_x)
    first = tl.program_id(1) * channels_each
    last = tl.minimum(first + channels_each, C)
    finite = store_mixtures(
        weights, within, source, source_place, cell_inside, value_c, target, place, inside, output_c,
        first, last, BLOCK_C, WHOLE_C, False,
    )  # fmt: skip
    if not finite:
        store_mixtures(
            weights, within, source, source_place, cell_inside, value_c, target, place, inside, output_c,
            first, last, BLOCK_C, WHOLE_C, True,
        )  # fmt: skip


@triton.jit
def query_backward_kernel(
    grad,  # (N, C, H, W)
    query,  # (N, D, H, W)
    key,  # (N, D, h, w)
    value,  # (N, C, h, w)
    normalizer,  # (N, H, W)
    grad_query,  # (N, D, H, W)
    weights,  # (N, H, w, taps, RATIO_X)
    grad_scores,  # the same
    D, C, H, W, h, w,
    grad_n, grad_c, grad_y, grad_x, query_n, query_c, query_y, query_x, key_n, key_c, key_y, key_x,
    value_n, value_c, value_y, value_x, grad_query_n, grad_query_c, grad_query_y, grad_query_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr, NORMALIZATION: tl.constexpr,
    NEEDS_QUERY: tl.constexpr, NEEDS_KEY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr,
    BLOCK_D: tl.constexpr, WHOLE_D: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE_C: tl.constexpr,
):  # fmt: skip
    # A program owns a tile of positions.
    positions, cells, own_cells, within = tile_of_positions(H, W, h, w, RATIO_Y, RATIO_X, RADIUS, ROWS, COLUMNS, CELLS)
    n, y0, x0, dy, dx, inside = positions
    cell_y0, cell_x0, cell_dy, cell_dx, cell_inside = cells
    row, column, phase = own_cells
    key_corner = corner(key, n, cell_y0, cell_x0, key_n, key_y, key_x)
    key_place = places(cell_dy, cell_dx, key_y, key_x)
    scores = add_products(
        corner(query, n, y0, x0, query_n, query_y, query_x), places(dy, dx, query_y, query_x), inside, query_c,
        key_corner, key_place, cell_inside, key_c, D, BLOCK_D, WHOLE_D,
    )  # fmt: skip
    saved = tl.load(normalizer + (n * H + y0) * W + x0 + dy * W + dx, inside, 1.0)
    if NORMALIZATION == 0:
        mix = tl.where(within, exp_less(scores, saved[:, None]), 0.0)
        # A large log-normalizer is rounded coarsely, for all taps alike: dividing by the sum takes that out again.
        factor = 1 / tl.sum(mix, 1)
    else:
        mix = tl.where(within, positive(scores, NORMALIZATION), 0.0)
        factor = 1 / saved
    mix = mix * factor[:, None]
    place, cell_place = tap_places(dy, row, column, phase, cell_dy, cell_dx, w, RADIUS, RATIO_X)
    here = within & inside[:, None]
    if NEEDS_VALUE:
        windows = tap_corner(weights, n, y0, cell_x0, H, w, RADIUS, RATIO_X) + place[:, None] + cell_place[None, :]
        tl.store(windows, mix.to(weights.dtype.element_ty), here)
    if NEEDS_QUERY or NEEDS_KEY:
        grads = add_products(
            corner(grad, n, y0, x0, grad_n, grad_y, grad_x), places(dy, dx, grad_y, grad_x), inside, grad_c,
            corner(value, n, cell_y0, cell_x0, value_n, value_y, value_x), places(cell_dy, cell_dx, value_y, value_x),
            cell_inside, value_c, C, BLOCK_C, WHOLE_C,
        )  # fmt: skip
        grads = tl.where(within, grads, 0.0)
        slope = mix
        if NORMALIZATION != 0:
            slope = tl.where(within, positive_slope(scores, NORMALIZATION) * factor[:, None], 0.0)
        grads = slope * (grads - tl.sum(mix * grads, 1)[:, None])
        if NEEDS_KEY:
            windows = tap_corner(grad_scores, n, y0, cell_x0, H, w, RADIUS, RATIO_X)
            tl.store(windows + place[:, None] + cell_place[None, :], grads, here)
        if NEEDS_QUERY:
            target = corner(grad_query, n, y0, x0, grad_query_n, grad_query_y, grad_query_x)
            place = places(dy, dx, grad_query_y, grad_query_x)
            finite = store_mixtures(
                grads, within, key_corner, key_place, cell_inside, key_c, target, place, inside, grad_query_c,
                0, D, BLOCK_D, WHOLE_D, False,
            )  # fmt: skip
            if not finite:
                store_mixtures(
                    grads, within, key_corner, key_place, cell_inside, key_c, target, place, inside, grad_query_c,
                    0, D, BLOCK_D, WHOLE_D, True,
                )  # fmt: skip


@triton.jit
def gather(
    source, taps, n, y0, x0, first, C, H, W, w, source_n, source_c, source_y, source_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr,
    BLOCK_C: tl.constexpr, WHOLE_C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``(cells, BLOCK_C)`` channels from ``first`` on: sums over the positions whose windows may hold a cell."""
    cell = tl.arange(0, CELLS * CELLS)
    cell_dy, cell_dx = cell // CELLS, cell % CELLS
    p = tl.arange(0, ROWS * COLUMNS)
    dy, dx = p // COLUMNS, p % COLUMNS
    first_y, first_x = (y0 - RADIUS) * RATIO_Y, (x0 - RADIUS) * RATIO_X
    TILES_X: tl.constexpr = ((CELLS + 2 * RADIUS) * RATIO_X + COLUMNS - 1) // COLUMNS
    TILES_Y: tl.constexpr = ((CELLS + 2 * RADIUS) * RATIO_Y + ROWS - 1) // ROWS
    # all tiles are whole, those above and below the map left out
    first_tile, tiles = tl.maximum(-first_y, 0) // ROWS, tl.minimum(tl.cdiv(H - first_y, ROWS), TILES_Y)
    sums = tl.zeros([CELLS * CELLS, BLOCK_C], tl.float32)
    for tile in range(first_tile * TILES_X, tiles * TILES_X):
        ty, tx = tile // TILES_X * ROWS, tile % TILES_X * COLUMNS
        row, _ = cells_of(ty, dy, ROWS, RATIO_Y)
        column, phase = cells_of(tx, p, COLUMNS, RATIO_X)
        row, column = row - RADIUS, column - RADIUS
        y, x = first_y + ty + dy, first_x + tx + dx
        inside = (y >= 0) & (y < H)
        within = reaches(cell_dy[:, None] - row[None, :], cell_dx[:, None] - column[None, :], RADIUS)
        within = within & (inside & (x0 + column >= 0) & (x0 + column < w))[None, :]
        place, cell_place = tap_places(dy, row, column, phase, cell_dy, cell_dx, w, RADIUS, RATIO_X)
        windows = tap_corner(taps, n, first_y + ty, x0, H, w, RADIUS, RATIO_X)
        weights = tl.load(windows + place[None, :] + cell_place[:, None], within, 0.0)
        vectors = load_tile(
            corner(source, n, first_y + ty, first_x + tx, source_n, source_y, source_x),
            places(dy, dx, source_y, source_x), inside & (x >= 0) & (x < W), first, C, source_c, BLOCK_C, WHOLE_C,
        )  # fmt: skip
        sums = add_product(sums, weights, within, vectors, EXACT)
    return sums


@triton.jit
def gather_kernel(
    source,  # (N, C, H, W)
    taps,  # (N, H, w, taps, RATIO_X): of each position its weights of the cells in its window
    target,  # (N, C, h, w)
    C, H, W, h, w,
    source_n, source_c, source_y, source_x, target_n, target_c, target_y, target_x,
    RATIO_Y: tl.constexpr, RATIO_X: tl.constexpr, RADIUS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE_C: tl.constexpr,
):  # fmt: skip
    # (n, y0, x0) is the corner of a tile of cells; the second axis of programs splits the channels
    tiles_x = tl.cdiv(w, CELLS)
    tile = tl.program_id(0)
    x0 = tile % tiles_x * CELLS
    y0 = tile // tiles_x % tl.cdiv(h, CELLS) * CELLS
    n = tl.cast(tile // tiles_x // tl.cdiv(h, CELLS), tl.int64)
    first = tl.program_id(1) * BLOCK_C
    sums = gather(
        source, taps, n, y0, x0, first, C, H, W, w, source_n, source_c, source_y, source_x,
        RATIO_Y, RATIO_X, RADIUS, ROWS, COLUMNS, CELLS, BLOCK_C, WHOLE_C, False,
    )  # fmt: skip
    if not all_finite(sums):
        sums = gather(
            source, taps, n, y0, x0, first, C, H, W, w, source_n, source_c, source_y, source_x,
            RATIO_Y, RATIO_X, RADIUS, ROWS, COLUMNS, CELLS, BLOCK_C, WHOLE_C, True,
        )  # fmt: skip
    cell = tl.arange(0, CELLS * CELLS)
    dy, dx = cell // CELLS, cell % CELLS
    store_tile(
        corner(target, n, y0, x0, target_n, target_y, target_x), places(dy, dx, target_y, target_x),
        (y0 + dy < h) & (x0 + dx < w), first, C, target_c, sums, BLOCK_C, WHOLE_C,
    )  # fmt: skip


def options_of(query, key, kernel_size):
    rows, columns = tile_sides(query.shape[2:], key.shape[2:], kernel_size)
    return dict(
        RATIO_Y=query.shape[2] // key.shape[2],
        RATIO_X=query.shape[3] // key.shape[3],
        RADIUS=kernel_size // 2,
        ROWS=rows,
        COLUMNS=columns,
        CELLS=CELLS,
    )


def blocks(name, channels, largest):
    """A size and whether all blocks of it are whole, as a kernel names them."""
    size = block(channels, largest)
    return {f'BLOCK_{name}': size, f'WHOLE_{name}': channels % size == 0}


def aligned(*maps):
    """Whether Triton sees where a vector of neighbours starts: it compiles for strides of 1 and multiples of 16."""
    return all(stride == 1 or stride % 16 == 0 for x in maps for stride in x.stride())


def of_cells(channels, large):
    """Warps of a program that gathers, and tiles under way in its loop: more where shared memory is ``large``."""
    return dict(num_warps=8 if channels > 32 else 4, num_stages=3 if large else 2)


def has_large_shared_memory(device):
    """163 KB for a program and more, as of sm_80 and sm_90; other cards have 99 KB."""
    return device.type != 'cuda' or torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > 2**17


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
    options = options_of(query, key, kernel_size)
    block_c = block(C, MIXED)
    tiles = N * triton.cdiv(H, options['ROWS']) * triton.cdiv(W, options['COLUMNS'])
    parts = max(1, min(triton.cdiv(C, block_c), ENOUGH_PROGRAMS // tiles))
    channels_each = triton.cdiv(triton.cdiv(max(C, 1), parts), block_c) * block_c
    with on_device_of(query):
        forward_kernel[(tiles, triton.cdiv(max(C, 1), channels_each))](
            query, key, value, output, normalizer, D, C, H, W, h, w, channels_each,
            *query.stride(), *key.stride(), *value.stride(), *output.stride(),
            **options, **blocks('D', D, MIXED), **blocks('C', C, MIXED), NORMALIZATION=normalization, **OF_POSITIONS,
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
    grad_query, grad_key, grad_value = grads = tuple(
        empty_following(x, x.shape if needed else (0,)) for x, needed in zip(inputs, needs_grad)
    )
    if not any(needs_grad):
        return grads
    grad, query, key, value = map(dense, (grad, query, key, value))
    options = options_of(query, key, kernel_size)
    windows = N, H, w, kernel_size**2, options['RATIO_X']
    weights = query.new_empty(windows if needs_value else (0,))
    # Half would overflow: a gradient of scores is a sum over all channels.
    wide = torch.float32 if query.dtype == torch.half else query.dtype
    grad_scores = query.new_empty(windows if needs_key else (0,), dtype=wide)
    with on_device_of(query):
        query_backward_kernel[(N * triton.cdiv(H, options['ROWS']) * triton.cdiv(W, options['COLUMNS']),)](
            grad, query, key, value, normalizer.contiguous(), grad_query, weights, grad_scores, D, C, H, W, h, w,
            *grad.stride(), *query.stride(), *key.stride(), *value.stride(),
            *(grad_query if needs_query else query).stride(),
            **options, **blocks('D', D, MIXED), **blocks('C', C, SUMMED[not aligned(grad, value)]),
            NORMALIZATION=normalization, NEEDS_QUERY=needs_query, NEEDS_KEY=needs_key, NEEDS_VALUE=needs_value,
            **OF_POSITIONS,
        )  # fmt: skip
        options.update(ROWS=POSITIONS, COLUMNS=POSITIONS)
        large = has_large_shared_memory(query.device)
        for source, taps, target in ((query, grad_scores, grad_key), (grad, weights, grad_value)):
            if target.numel() > 0:
                sizes = blocks('C', source.shape[1], GATHERED[not aligned(source)])
                parts = triton.cdiv(source.shape[1], sizes['BLOCK_C'])
                gather_kernel[(N * triton.cdiv(h, CELLS) * triton.cdiv(w, CELLS), parts)](
                    source, taps, target, source.shape[1], H, W, h, w, *source.stride(), *target.stride(),
                    **options, **sizes, **of_cells(sizes['BLOCK_C'], large),
                )  # fmt: skip
    return grads
