# SPDX-License-Identifier: Apache-2.0
"""Deformable assembly: mix decoder points that lie anywhere, not in a window."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .checks import check_deformable_assembly
from .library import runs_native
from .maps import accumulation_dtype


@autocast_inputs
def deformable_assembly(feature: Tensor, kernels: Tensor, offset: Tensor, groups: int = 1) -> Tensor:
    """Weighted sum of samples of the features at the points of :func:`~sapa_mm.ops.deformable_scores`.

    Args:
        feature: ``(N, C, h, w)``, floating point.
        kernels: ``(N, groups * points, H, W)``, used as given (normalise them first), of any floating-point dtype.
        offset: ``(N, groups * points * 2, H, W)``, dtype and device of ``feature``.
        groups: Groups of neighbouring channels, each with points of its own; divides ``C``.

    Returns:
        ``(N, C, H, W)``, dtype of ``feature``; half and bfloat16 are accumulated in float32.

    Raises:
        TypeError, ValueError: As :func:`~sapa_mm.ops.deformable_scores`, whose note on determinism holds for
            ``feature`` here.
    """
    if not runs_native('deformable_assembly', feature):
        return reference.deformable_assembly(feature, kernels, offset, groups)
    check_deformable_assembly(feature, kernels, offset, groups)
    kernels = kernels.to(accumulation_dtype(feature.dtype))
    return torch.ops.sapa_mm.deformable_assembly(feature, kernels, offset, groups)
