# SPDX-License-Identifier: Apache-2.0
"""Feature assembly: mix a window of decoder points by given kernels."""

import torch
from torch import Tensor

from . import reference
from .autocast import autocast_inputs
from .borders import lay_assembly_border
from .checks import check_feature_assembly
from .library import runs_native


@autocast_inputs
def feature_assembly(
    feature: Tensor, kernels: Tensor, kernel_size: int, groups: int = 1, border: str = 'zero'
) -> Tensor:
    """Weighted sum of the window of features around each output position: the reassembly of CARAFE, FADE and A2U.

    Args:
        feature: ``(N, C, h, w)``, floating point.
        kernels: ``(N, groups * K*K, H, W)``, used as given (normalise them first), group by group, each window
            row-major; dtype and device of ``feature``. ``H`` and ``W`` are the output's size.
        kernel_size: Window side ``K`` in positions of the feature, odd, 1 to 15.
        groups: Groups of neighbouring channels with a kernel each; divides ``C``.
        border: What windows find beyond the map: ``'zero'`` (and the same, ``'clip'``), ``'shift'`` (nothing: windows
            move inwards), ``'replicate'`` or ``'reflect'``. See :mod:`sapa_mm.ops.borders`.

    Returns:
        ``(N, C, H, W)``.

    Raises:
        TypeError: If an input is no floating-point tensor or the dtypes differ.
        ValueError: If ranks, batch sizes, channel counts or devices do not fit, or an option is out of range.
    """
    check_feature_assembly(feature, kernels, kernel_size, groups, border)
    if not runs_native('feature_assembly', feature):
        return reference.feature_assembly(feature, kernels, kernel_size, groups, border)
    feature, code = lay_assembly_border(kernel_size, border, feature)
    return torch.ops.sapa_mm.feature_assembly(feature, kernels, kernel_size, groups, code)
