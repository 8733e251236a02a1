# SPDX-License-Identifier: Apache-2.0
"""Point affiliation: mix a window of decoder points by their similarity to an encoder point."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import NORMALIZATIONS, check_point_affiliation
from .library import is_loaded, runs_native


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
            add ``reference.EPS`` to the sum.

    Returns:
        ``(N, C, H, W)``, dtype of ``value``; half and bfloat16 are accumulated in float32. Inside autocast all inputs
        are cast to its dtype first.

    Raises:
        TypeError: If an input is no floating-point tensor or the dtypes differ.
        ValueError: If ranks, batch sizes, channels of query and key, sizes of key and value or devices differ, or an
            option is out of range.

    Source: eq. (3) of https://arxiv.org/abs/2209.12866, stated there for ``H = 2h``.
    """
    if not runs_native(query):
        return reference.point_affiliation(query, key, value, kernel_size, normalization)
    check_point_affiliation(query, key, value, kernel_size, normalization)
    code = NORMALIZATIONS.index(normalization)
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


def _register() -> None:
    from .registration import fake_gradients, memory_format, needed_gradients, no_double_backward, register_fake

    @register_fake('sapa_mm::point_affiliation')
    def _(query, key, value, kernel_size, normalization):
        output = value.new_empty((*value.shape[:2], *query.shape[2:])).to(memory_format=memory_format(value))
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        return output, query.new_empty((query.shape[0], *query.shape[2:]), dtype=dtype)

    @register_fake('sapa_mm::_point_affiliation_backward')
    def _(grad, query, key, value, normalizer, kernel_size, normalization, needs_grad):
        return fake_gradients((query, key, value), needs_grad)

    def save(ctx, inputs, output):
        query, key, value, *ctx.options = inputs
        ctx.save_for_backward(query, key, value, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def backward(ctx, grad, _):
        needs_grad = ctx.needs_input_grad[:3]
        if grad is None:
            return None, None, None, None, None
        grads = torch.ops.sapa_mm._point_affiliation_backward(grad, *ctx.saved_tensors, *ctx.options, needs_grad)
        return needed_gradients(grads, needs_grad, ctx.options)

    torch.library.register_autograd('sapa_mm::point_affiliation', backward, setup_context=save)
    no_double_backward('_point_affiliation_backward')


if is_loaded():
    _register()
