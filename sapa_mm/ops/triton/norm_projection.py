# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over channels and the 1x1 convolution after it, for half and bfloat16, without writing the normalised map.

A program owns a run of positions, one after another in memory or one vector of channels after another. It reads their
channels once for mean and deviation and once more, from the cache, for the product, which the tensor cores take in
TF32: of a map of half or bfloat16, less its mean, that keeps more digits than the result has.
"""

import torch
import triton
import triton.language as tl

from ..checks import check_norm_projection, check_tensor
from .launching import block, dense, empty_following, on_device_of

POSITIONS = 64
CHANNELS = 64  # at a time
OUTPUTS = 64  # rows of the matrix at a time
#: Programs that sum the gradient of the matrix, each over its share of the positions, for each part of the matrix.
SHARES = 64


@triton.jit
def load_channels(x, place, inside, first, C, stride, BLOCK: tl.constexpr):
    """``(positions, BLOCK)`` as float32, 0 beyond."""
    c = first + tl.arange(0, BLOCK)
    there = inside[:, None] & (c < C)[None, :]
    return tl.load(x + place[:, None] + tl.cast(c, tl.int64)[None, :] * stride, there, 0.0).to(tl.float32)


@triton.jit
def load_matrix(matrix, row, first, D, C, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr):
    """``(BLOCK_D, BLOCK_C)`` of a contiguous matrix, 0 beyond."""
    d, c = row + tl.arange(0, BLOCK_D), first + tl.arange(0, BLOCK_C)
    return tl.load(matrix + d[:, None] * C + c[None, :], (d < D)[:, None] & (c < C)[None, :], 0.0)


@triton.jit
def forward_kernel(
    x,  # (N, C, positions)
    matrix,  # (D, C)
    shift,  # (D,)
    output,  # (N, D, positions)
    mean,  # (N, positions)
    rstd,  # (N, positions)
    C, D, count, eps, x_n, x_c, x_p, output_n, output_c, output_p,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # (n, p) are positions of one image; the second axis of programs are rows of the matrix
    blocks = tl.cdiv(count, BLOCK_P)
    n = tl.cast(tl.program_id(0) // blocks, tl.int64)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.program_id(1) * BLOCK_D
    inside = p < count
    x += n * x_n
    place = tl.cast(p, tl.int64) * x_p
    # Mean and sum of squares of parts of the channels, put together without a difference of large numbers.
    average = tl.zeros([BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_P], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        part = load_channels(x, place, inside, c0, C, x_c, BLOCK_C)
        size = tl.cast(tl.minimum(C - c0, BLOCK_C), tl.float32)
        before = tl.cast(c0, tl.float32)
        part_average = tl.sum(part, 1) / size
        centred = tl.where((c0 + tl.arange(0, BLOCK_C) < C)[None, :], part - part_average[:, None], 0.0)
        difference = part_average - average
        average += difference * (size / (before + size))
        squares += tl.sum(centred * centred, 1) + difference * difference * (before * size / (before + size))
    scale = 1 / tl.sqrt(squares / C + eps)
    if tl.program_id(1) == 0:
        tl.store(mean + n * count + p, average, inside)
        tl.store(rstd + n * count + p, scale, inside)
    sums = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        part = load_channels(x, place, inside, c0, C, x_c, BLOCK_C) - average[:, None]
        part = tl.where((c0 + tl.arange(0, BLOCK_C) < C)[None, :], part * scale[:, None], 0.0)
        weights = load_matrix(matrix, row, c0, D, C, BLOCK_D, BLOCK_C)
        sums = tl.dot(part, tl.trans(weights), sums, input_precision='tf32')
    d = row + tl.arange(0, BLOCK_D)
    sums += tl.load(shift + d, d < D, 0.0)[None, :]
    target = output + n * output_n + tl.cast(p, tl.int64)[:, None] * output_p + tl.cast(d, tl.int64)[None, :] * output_c
    tl.store(target, sums.to(output.dtype.element_ty), inside[:, None] & (d < D)[None, :])


@triton.jit
def load_gradient(grad, matrix, place, inside, first, C, D, stride, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
                  BLOCK_D: tl.constexpr):  # fmt: skip
    """Gradient of the normalised map, ``(positions, BLOCK_C)`` channels from ``first`` on."""
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for row in range(0, D, BLOCK_D):
        g = load_channels(grad, place, inside, row, D, stride, BLOCK_D)
        sums = tl.dot(g, load_matrix(matrix, row, first, D, C, BLOCK_D, BLOCK_C), sums, input_precision='tf32')
    return sums


@triton.jit
def map_backward_kernel(
    grad,  # (N, D, positions)
    x,  # (N, C, positions)
    matrix,  # (D, C)
    mean,  # (N, positions)
    rstd,  # (N, positions)
    grad_x,  # (N, C, positions)
    C, D, count, grad_n, grad_c, grad_p, x_n, x_c, x_p,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # (n, p) are positions of one image
    blocks = tl.cdiv(count, BLOCK_P)
    n = tl.cast(tl.program_id(0) // blocks, tl.int64)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < count
    grad += n * grad_n
    x += n * x_n
    grad_x += n * x_n
    grad_place, place = tl.cast(p, tl.int64) * grad_p, tl.cast(p, tl.int64) * x_p
    average = tl.load(mean + n * count + p, inside, 0.0)
    scale = tl.load(rstd + n * count + p, inside, 0.0)
    sums, projection = tl.zeros([BLOCK_P], tl.float32), tl.zeros([BLOCK_P], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        part = load_gradient(grad, matrix, grad_place, inside, c0, C, D, grad_c, BLOCK_P, BLOCK_C, BLOCK_D)
        normed = (load_channels(x, place, inside, c0, C, x_c, BLOCK_C) - average[:, None]) * scale[:, None]
        there = (c0 + tl.arange(0, BLOCK_C) < C)[None, :]
        sums += tl.sum(part, 1)
        projection += tl.sum(tl.where(there, part * normed, 0.0), 1)
    for c0 in range(0, C, BLOCK_C):
        part = load_gradient(grad, matrix, grad_place, inside, c0, C, D, grad_c, BLOCK_P, BLOCK_C, BLOCK_D)
        normed = (load_channels(x, place, inside, c0, C, x_c, BLOCK_C) - average[:, None]) * scale[:, None]
        part = (part - (sums / C)[:, None] - normed * (projection / C)[:, None]) * scale[:, None]
        c = c0 + tl.arange(0, BLOCK_C)
        target = grad_x + place[:, None] + tl.cast(c, tl.int64)[None, :] * x_c
        tl.store(target, part.to(grad_x.dtype.element_ty), inside[:, None] & (c < C)[None, :])


@triton.jit
def matrix_backward_kernel(
    grad,  # (N, D, positions)
    x,  # (N, C, positions)
    mean,  # (N, positions)
    rstd,  # (N, positions)
    grad_matrix,  # (shares, D, C), to be summed
    N, C, D, count, shares, grad_n, grad_c, grad_p, x_n, x_c, x_p,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # (row, c0) is the corner of a part of the matrix; the first axis of programs are shares of the positions
    c0, row = tl.program_id(1) * BLOCK_C, tl.program_id(2) * BLOCK_D
    blocks = tl.cdiv(count, BLOCK_P)
    sums = tl.zeros([BLOCK_D, BLOCK_C], tl.float32)
    for b in range(tl.program_id(0), N * blocks, shares):
        n = tl.cast(b // blocks, tl.int64)
        p = b % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = p < count
        g = load_channels(grad + n * grad_n, tl.cast(p, tl.int64) * grad_p, inside, row, D, grad_c, BLOCK_D)
        part = load_channels(x + n * x_n, tl.cast(p, tl.int64) * x_p, inside, c0, C, x_c, BLOCK_C)
        average = tl.load(mean + n * count + p, inside, 0.0)
        scale = tl.load(rstd + n * count + p, inside, 0.0)
        normed = (part - average[:, None]) * scale[:, None]
        sums = tl.dot(tl.trans(g), normed, sums, input_precision='tf32')
    d, c = row + tl.arange(0, BLOCK_D), c0 + tl.arange(0, BLOCK_C)
    target = grad_matrix + (tl.cast(tl.program_id(0), tl.int64) * D + d)[:, None] * C + c[None, :]
    tl.store(target, sums, (d < D)[:, None] & (c < C)[None, :])


def flat_strides(x):
    """Strides of images, channels and positions of a dense map."""
    return x.stride(0), x.stride(1), 1 if x.is_contiguous() else x.shape[1]


def check(x, matrix, shift):
    """Before memory is touched: for callers of ``torch.ops``, since the public function has asked already."""
    check_norm_projection(x, matrix, shift)
    check_tensor('matrix', matrix, matrix.shape, x, torch.float32)
    check_tensor('shift', shift, shift.shape, x, torch.float32)


def forward(x, matrix, shift, eps):
    """As ``torch.ops.sapa_mm.norm_projection``, but the output has the layout of ``x``."""
    check(x, matrix, shift)
    (N, C, H, W), D = x.shape, matrix.shape[0]
    x, matrix, shift = dense(x), matrix.contiguous(), shift.contiguous()
    output = empty_following(x, (N, D, H, W))
    mean, rstd = (empty_following(x, (N, H, W), torch.float32) for _ in range(2))
    if output.numel() == 0:
        return output, mean.zero_(), rstd.zero_()
    block_d = block(D, OUTPUTS)
    with on_device_of(x):
        forward_kernel[(N * triton.cdiv(H * W, POSITIONS), triton.cdiv(D, block_d))](
            x, matrix, shift, output, mean, rstd, C, D, H * W, eps, *flat_strides(x), *flat_strides(output),
            BLOCK_P=POSITIONS, BLOCK_C=block(C, CHANNELS), BLOCK_D=block_d,
        )  # fmt: skip
    return output, mean, rstd


def backward(grad, x, matrix, shift, mean, rstd, eps, needs_grad):
    """As ``torch.ops.sapa_mm._norm_projection_backward``, but the gradient of ``x`` has its layout."""
    check(x, matrix, shift)
    (N, C, H, W), D = x.shape, matrix.shape[0]
    check_tensor('grad', grad, (N, D, H, W), x)
    for name, saved in dict(mean=mean, rstd=rstd).items():
        check_tensor(name, saved, (N, H, W), x, torch.float32)
    inputs = x, matrix, shift
    grads = [empty_following(t, t.shape if needed else (0,)) for t, needed in zip(inputs, needs_grad)]
    if D == 0:
        return tuple(g.zero_() for g in grads)
    grad, x, matrix, mean, rstd = dense(grad), dense(x), matrix.contiguous(), mean.contiguous(), rstd.contiguous()
    sizes = dict(BLOCK_P=POSITIONS, BLOCK_C=block(C, CHANNELS), BLOCK_D=block(D, OUTPUTS))
    blocks = N * triton.cdiv(H * W, POSITIONS)
    with on_device_of(x):
        if needs_grad[0]:
            map_backward_kernel[(blocks,)](
                grad, x, matrix, mean, rstd, grads[0], C, D, H * W, *flat_strides(grad), *flat_strides(x), **sizes
            )
        if needs_grad[1]:
            shares = min(SHARES, blocks)
            parts = matrix.new_empty(shares, D, C)
            matrix_backward_kernel[(shares, triton.cdiv(C, sizes['BLOCK_C']), triton.cdiv(D, sizes['BLOCK_D']))](
                grad, x, mean, rstd, parts, N, C, D, H * W, shares, *flat_strides(grad), *flat_strides(x), **sizes
            )
            grads[1] = parts.sum(0)
        if needs_grad[2]:
            grads[2] = grad.sum((0, 2, 3), dtype=torch.float32)
    return tuple(grads)
