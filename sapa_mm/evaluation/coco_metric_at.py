# SPDX-License-Identifier: Apache-2.0
"""mmdet's CocoMetric at chosen IoU thresholds."""

from collections.abc import Sequence

import numpy as np
from mmdet.evaluation import CocoMetric

from ..registry import METRICS


@METRICS.register_module()
class CocoMetricAt(CocoMetric):
    """CocoMetric of mmdet whose mAP is the mean over given IoU thresholds, such as 0.9 alone.

    The parent takes a list too, but pycocotools compares it with numbers and needs an array, which no config can hold.

    Args:
        iou_thrs (Sequence[float]): Thresholds, each between 0 and 1.
        metric_items (list[str]): Defaults to ``['mAP']``: the figures at 0.5 and 0.75 are -1 unless these are among
            ``iou_thrs``.
        **kwargs: As the parent.

    Raises:
        ValueError: If there is no threshold, or one is out of range.
    """

    def __init__(self, iou_thrs: Sequence[float], metric_items: Sequence[str] = ('mAP',), **kwargs) -> None:
        super().__init__(metric_items=list(metric_items), **kwargs)
        if not iou_thrs or not all(0 < threshold <= 1 for threshold in iou_thrs):
            raise ValueError(f'iou_thrs must be thresholds between 0 and 1, got {list(iou_thrs)}')
        self.iou_thrs = np.array(iou_thrs, dtype=float)
