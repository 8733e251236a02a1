# SPDX-License-Identifier: Apache-2.0
"""Backbones that mmseg and mmdet do not have."""

from ..registry import MODELS, import_or_explain
from .image_guided_upsampler import ImageGuidedUpsampler

SegNetEncoder = import_or_explain('.segnet_encoder', 'SegNetEncoder', 'mmcv', MODELS, __name__)

__all__ = ['ImageGuidedUpsampler', 'SegNetEncoder']
