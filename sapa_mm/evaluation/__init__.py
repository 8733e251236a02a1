# SPDX-License-Identifier: Apache-2.0
"""Metrics for the evaluators of mmseg and mmdet."""

from ..registry import METRICS, import_or_explain
from .boundary_iou import BoundaryIoU

PanopticQuality = import_or_explain('.panoptic_quality', 'PanopticQuality', 'mmdet', METRICS, __name__)

__all__ = ['BoundaryIoU', 'PanopticQuality']
