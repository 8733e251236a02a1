# SPDX-License-Identifier: Apache-2.0
"""Backbones that mmseg and mmdet do not have, not as published, or not with a guided decoder."""

from ..registry import MODELS, import_or_explain
from .image_guided_upsampler import ImageGuidedUpsampler

GuidedUNet = import_or_explain('.guided_unet', 'GuidedUNet', 'mmseg', MODELS, __name__)
MixVisionTransformer = import_or_explain('.mix_vision_transformer', 'MixVisionTransformer', 'mmseg', MODELS, __name__)
SegNetEncoder = import_or_explain('.segnet_encoder', 'SegNetEncoder', 'mmcv', MODELS, __name__)

__all__ = ['GuidedUNet', 'ImageGuidedUpsampler', 'MixVisionTransformer', 'SegNetEncoder']
