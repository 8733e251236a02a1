# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the upsamplers do."""

from .affiliation import draw_affiliation
from .features import (
    Recording,
    Stage,
    choose_points,
    draw_kernels,
    draw_maps,
    draw_row,
    draw_stages,
    draw_upsampled,
    record_upsamplers,
    rgb_of,
)

__all__ = [
    'Recording',
    'Stage',
    'choose_points',
    'draw_affiliation',
    'draw_kernels',
    'draw_maps',
    'draw_row',
    'draw_stages',
    'draw_upsampled',
    'record_upsamplers',
    'rgb_of',
]
