# SPDX-License-Identifier: Apache-2.0
"""Monocular depth estimation: BTS with guided upsampling, its loss, data, augmentation and measures."""

from ..registry import DATASETS, MODELS, TRANSFORMS, import_or_explain
from .depth_accuracy import DepthAccuracy
from .silog_loss import SILogLoss

GuidedBTSHead = import_or_explain('.guided_bts_head', 'GuidedBTSHead', 'mmseg', MODELS, __name__)
ResNetWithStem = import_or_explain('.resnet_with_stem', 'ResNetWithStem', 'mmseg', MODELS, __name__)
BTSDataset = import_or_explain('.bts_dataset', 'BTSDataset', 'mmseg', DATASETS, __name__)
LoadDepth = import_or_explain('.transforms', 'LoadDepth', 'mmseg', TRANSFORMS, __name__)
CropBox = import_or_explain('.transforms', 'CropBox', 'mmseg', TRANSFORMS, __name__)
RandomColor = import_or_explain('.transforms', 'RandomColor', 'mmseg', TRANSFORMS, __name__)

__all__ = [
    'BTSDataset',
    'CropBox',
    'DepthAccuracy',
    'GuidedBTSHead',
    'LoadDepth',
    'RandomColor',
    'ResNetWithStem',
    'SILogLoss',
]
