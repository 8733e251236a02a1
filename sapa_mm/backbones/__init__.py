# SPDX-License-Identifier: Apache-2.0
"""Backbones that mmseg and mmdet do not have, or not as published."""

from ..registry import MODELS, import_or_explain
from .image_guided_upsampler import ImageGuidedUpsampler

MixVisionTransformer = import_or_explain('.mix_vision_transformer', 'MixVisionTransformer', 'mmseg', MODELS, __name__)
SegNetEncoder = import_or_explain('.segnet_encoder', 'SegNetEncoder', 'mmcv', MODELS, __name__)

__all__ = ['ImageGuidedUpsampler', 'MixVisionTransformer', 'SegNetEncoder']
