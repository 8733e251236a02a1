# SPDX-License-Identifier: Apache-2.0
"""Boundary AP: mmdet's CocoMetric for masks whose outlines are compared too."""

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from pycocotools import mask as rle

from ..registry import METRICS
from .boundary_iou import at_boundary, boundary_radius, check_width


@METRICS.register_module()
class BoundaryCocoMetric(CocoMetric):
    """Boundary AP of instance segmentation.

    AP of masks, where two masks match as far as the smaller of their IoU and their boundary IoU says. The boundary
    region of a mask are its pixels that have a pixel outside the mask or the image within ``d`` rows and columns,
    ``d = max(1, round(dilation_ratio * diagonal))``. A crowd counts by its IoU alone.

    It stands beside ``CocoMetric``; give it a ``prefix``::

        val_evaluator = [
            dict(type='CocoMetric', ann_file=ann_file, metric=['bbox', 'segm']),
            dict(type='sapa_mm.BoundaryCocoMetric', ann_file=ann_file, prefix='boundary'),
        ]

    Args:
        dilation_ratio (float): Width of the regions as a part of the image's diagonal, positive. Defaults to 0.02.
        width (int, optional): Width of the regions in pixels, positive, in place of ``dilation_ratio``. Defaults to
            None.
        **kwargs: As the parent, but for ``metric``, which is ``'segm'``.

    Raises:
        ValueError: If ``dilation_ratio`` is not positive or ``width`` no positive integer.
        TypeError: If ``metric`` is given.

    Source: https://arxiv.org/abs/2103.16562
    """

    def __init__(self, dilation_ratio: float = 0.02, width: int | None = None, **kwargs) -> None:
        if 'metric' in kwargs:
            raise TypeError(f"metric is always 'segm' and cannot be given, got {kwargs['metric']!r}")
        super().__init__(metric='segm', **kwargs)
        check_width(dilation_ratio, width)
        self.dilation_ratio = dilation_ratio
        self.width = width

    def compute_metrics(self, results: list) -> dict[str, float]:
        """As the parent, with IoUs of this class.

        Args:
            results: Truth and prediction of each image.
        """

        def make(*args, **kwargs):
            return BoundaryCOCOeval(self.dilation_ratio, self.width, *args, **kwargs)

        # The parent names the class that compares, and has no argument for it.
        parents = coco_metric.COCOeval, coco_metric.COCOevalMP
        coco_metric.COCOeval = coco_metric.COCOevalMP = make
        try:
            return super().compute_metrics(results)
        finally:
            coco_metric.COCOeval, coco_metric.COCOevalMP = parents


class BoundaryCOCOeval(COCOeval):
    """The smaller of IoU and boundary IoU for every pair of masks."""

    def __init__(self, dilation_ratio, width, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dilation_ratio = dilation_ratio
        self.width = width

    def computeIoU(self, imgId, catId):
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truths, found = self._gts[imgId, catId], self._dts[imgId, catId]
        # in the order of the parent
        order = np.argsort([-d['score'] for d in found], kind='mergesort')[: self.params.maxDets[-1]]
        crowd = np.array([bool(t['iscrowd']) for t in truths])
        regions = ([self._region(x['segmentation']) for x in masks] for masks in ([found[i] for i in order], truths))
        at_boundaries = rle.iou(*regions, np.zeros(len(truths)))
        return np.where(crowd, ious, np.minimum(ious, at_boundaries))

    def _region(self, mask):
        radius = boundary_radius(mask['size'], self.dilation_ratio, self.width)
        return rle.encode(np.asfortranarray(boundary_region(rle.decode(mask), radius)))


def boundary_region(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels of a mask, ``(H, W)`` of 0 and 1, that have an outside within ``radius`` rows and columns."""
    return mask & at_boundary(mask, radius, outside=0)
