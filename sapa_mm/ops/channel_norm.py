# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the channels of an NCHW map, where it stands, alone or with the 1x1 convolution after it."""

import torch
from torch import Tensor

from . import reference
from .checks import check_channel_norm, check_norm_projection
from .library import is_loaded


def channel_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise every position of a map over its channels, as ``F.layer_norm`` does over the last axis.

    Torch's own needs the channels side by side, and so a copy of the map each way. On the CPU a compiled operator
    leaves them where they are; it serves maps that are contiguous as NCHW. Others, and other devices, take torch's.

    Args:
        x: ``(N, C, H, W)``, floating point.
        weight: ``(C,)``, multiplied with the result; None for 1.
        bias: ``(C,)``, added to it; None for 0.
        eps: Added to the variance.

    Returns:
        ``(N, C, H, W)``, dtype of ``x``; half and bfloat16 are computed in float32.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If ``x`` has not four dimensions, or a parameter not one element for each channel.
    """
    check_channel_norm(x, weight, bias)
    if not _runs_native(x):
        return reference.channel_norm(x, weight, bias, eps)
    return torch.ops.sapa_mm.channel_norm(x, weight, bias, eps)[0]


def norm_projection(x: Tensor, matrix: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """``matrix @ normalised x + shift`` at every position, with ``x`` normalised as in :func:`channel_norm`.

    A LayerNorm with weight ``w`` and bias ``b`` before a 1x1 convolution ``(W, c)`` is ``matrix = W * w``,
    ``shift = W @ b + c``. On the CPU the normalised map is never written. Served as :func:`channel_norm`.

    Args:
        x: ``(N, C, H, W)``, floating point.
        matrix: ``(D, C)``, float64 for ``x`` of float64 and float32 for all other dtypes.
        shift: ``(D,)``, dtype of ``matrix``.
        eps: Added to the variance.

    Returns:
        ``(N, D, H, W)``, dtype of ``x``; half and bfloat16 are computed in float32.

    Raises:
        TypeError: If ``x`` is no floating-point tensor or the dtypes do not fit.
        ValueError: If shapes or devices do not fit.
    """
    check_norm_projection(x, matrix, shift)
    if not _runs_native(x):
        return reference.norm_projection(x, matrix, shift, eps)
    return torch.ops.sapa_mm.norm_projection(x, matrix, shift, eps)[0]


def _runs_native(x: Tensor) -> bool:
    return is_loaded() and x.device.type == 'cpu' and x.is_contiguous()


def _register() -> None:
    from .registration import needed_gradients, no_double_backward, register_fake

    def moments(x):
        shape, dtype = (x.shape[0], *x.shape[2:]), reference.accumulation_dtype(x.dtype)
        return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)

    def gradients(inputs, needs_grad):
        return tuple(
            torch.empty_like(t, memory_format=torch.contiguous_format) if needed else inputs[0].new_empty(0)
            for t, needed in zip(inputs, needs_grad)
        )

    @register_fake('sapa_mm::channel_norm')
    def _(x, weight, bias, eps):
        return torch.empty_like(x, memory_format=torch.contiguous_format), *moments(x)

    @register_fake('sapa_mm::_channel_norm_backward')
    def _(grad, x, weight, bias, mean, rstd, eps, needs_grad):
        return gradients((x, weight, bias), needs_grad)

    @register_fake('sapa_mm::norm_projection')
    def _(x, matrix, shift, eps):
        return x.new_empty((x.shape[0], matrix.shape[0], *x.shape[2:])), *moments(x)

    @register_fake('sapa_mm::_norm_projection_backward')
    def _(grad, x, matrix, shift, mean, rstd, eps, needs_grad):
        return gradients((x, matrix, shift), needs_grad)

    def register(name):
        def save(ctx, inputs, output):
            *tensors, ctx.eps = inputs
            ctx.save_for_backward(*tensors, *output[1:])
            ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)

        def backward(ctx, grad, *_):
            needs_grad = ctx.needs_input_grad[:3]
            if grad is None:
                return None, None, None, None
            grads = getattr(torch.ops.sapa_mm, f'_{name}_backward')(grad, *ctx.saved_tensors, ctx.eps, needs_grad)
            return needed_gradients(grads, needs_grad, ('eps',))

        torch.library.register_autograd(f'sapa_mm::{name}', backward, setup_context=save)
        no_double_backward(f'_{name}_backward')

    register('channel_norm')
    register('norm_projection')


if is_loaded():
    _register()
