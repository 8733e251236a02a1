# SPDX-License-Identifier: Apache-2.0
"""Image matting, the A2U baseline of Composition-1k: data, network, model, loss, metric."""

from . import transforms
from .dataset import MattingTestDataset, MattingTrainDataset
from .inference import predict_alpha
from .losses import MattingLoss
from .mattor import MattingPreprocessor, MattingSample, Mattor
from .metrics import MattingMetric, matting_errors
from .network import GuidedMattingNet

__all__ = [
    'GuidedMattingNet',
    'MattingLoss',
    'MattingMetric',
    'MattingPreprocessor',
    'MattingSample',
    'MattingTestDataset',
    'MattingTrainDataset',
    'Mattor',
    'matting_errors',
    'predict_alpha',
    'transforms',
]
