# SPDX-License-Identifier: Apache-2.0
"""Telling the parents' ``upsample_cfg``, arguments of ``F.interpolate``, from that of an upsampler."""

from collections.abc import Mapping

OPTIONS = ('mode', 'scale_factor', 'align_corners', 'recompute_scale_factor', 'antialias')


def is_interpolation(upsample_cfg: Mapping) -> bool:
    """Whether it is the parent's: it has no ``type``.

    Raises:
        TypeError: If it has none, and an option that ``F.interpolate`` would refuse at the first image.
    """
    if 'type' in upsample_cfg:
        return False
    for name in upsample_cfg:
        if name not in OPTIONS:
            raise TypeError(
                f"upsample_cfg needs a 'type' (an upsampler) or options of F.interpolate among {OPTIONS}, got {name!r}"
            )
    return True
