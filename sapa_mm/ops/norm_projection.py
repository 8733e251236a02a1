# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the channels of an NCHW map together with the 1x1 convolution after it."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import check_norm_projection
from .library import choose


@autocast_inputs
def norm_projection(x: Tensor, matrix: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """``matrix @ normalised x + shift`` at every position; :func:`~sapa_mm.ops.channel_norm` normalises likewise.

    A LayerNorm with weight ``w`` and bias ``b`` before a 1x1 convolution ``(W, c)`` is ``matrix = W * w``,
    ``shift = W @ b + c``. On the CPU a compiled operator that never writes the normalised map serves maps that are
    contiguous as NCHW, on a GPU a Triton kernel half and bfloat16; others take torch's products.

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
    chosen = choose('norm_projection', x)
    if chosen == 'triton':
        return torch.ops.sapa_mm.triton_norm_projection(x, matrix, shift, eps)[0]
    if chosen == 'reference' or not x.is_contiguous():
        return reference.norm_projection(x, matrix, shift, eps)
    return torch.ops.sapa_mm.norm_projection(x, matrix, shift, eps)[0]
