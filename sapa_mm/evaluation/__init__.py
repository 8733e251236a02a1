# SPDX-License-Identifier: Apache-2.0
"""Metrics for the evaluators of mmseg and mmdet."""

from ..registry import METRICS, import_or_explain
from .boundary_iou import BoundaryIoU

BoundaryCocoMetric = import_or_explain('.boundary_coco_metric', 'BoundaryCocoMetric', 'mmdet', METRICS, __name__)
ClassIoU = import_or_explain('.class_iou', 'ClassIoU', 'mmseg', METRICS, __name__)
CocoMetricAt = import_or_explain('.coco_metric_at', 'CocoMetricAt', 'mmdet', METRICS, __name__)
PanopticQuality = import_or_explain('.panoptic_quality', 'PanopticQuality', 'mmdet', METRICS, __name__)

__all__ = ['BoundaryCocoMetric', 'BoundaryIoU', 'ClassIoU', 'CocoMetricAt', 'PanopticQuality']
