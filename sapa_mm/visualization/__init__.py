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
from .shares import Mixture, Shares, bilinear_kernels, data_url, describe, draw_shares, mixture_of

__all__ = [
    'Mixture',
    'Recording',
    'Shares',
    'Stage',
    'bilinear_kernels',
    'choose_points',
    'data_url',
    'describe',
    'draw_affiliation',
    'draw_kernels',
    'draw_maps',
    'draw_row',
    'draw_shares',
    'draw_stages',
    'draw_upsampled',
    'mixture_of',
    'record_upsamplers',
    'rgb_of',
]
