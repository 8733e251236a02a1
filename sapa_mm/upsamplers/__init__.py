# SPDX-License-Identifier: Apache-2.0
"""Upsamplers: modules with ``forward(feature, guide)`` that give the feature the guide's size."""

from .base import BaseUpsampler, build_upsampler
from .sapa import SAPA

__all__ = ['SAPA', 'BaseUpsampler', 'build_upsampler']
