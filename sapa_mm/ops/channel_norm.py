# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the channels of an NCHW map, where it stands."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import check_channel_norm
from .library import runs_native


@autocast_inputs
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
    if not (runs_native('channel_norm', x) and x.is_contiguous()):
        return reference.channel_norm(x, weight, bias, eps)
    return torch.ops.sapa_mm.channel_norm(x, weight, bias, eps)[0]
