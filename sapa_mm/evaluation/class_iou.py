# SPDX-License-Identifier: Apache-2.0
"""mmseg's IoUMetric that also returns what it prints for each class."""

from mmseg.evaluation.metrics import IoUMetric

from ..registry import METRICS


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """IoUMetric of mmseg with the IoU of each class among its results, as ``IoU.CLASS``.

    The parent prints them in a table and returns their means alone.

    Args:
        **kwargs: As the parent; ``iou_metrics`` holds ``'mIoU'``, its default.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Sum up.

        Args:
            results: Areas of intersection, union, prediction and truth by class, four for each image.

        Returns:
            The parent's means, and the IoU of every class that is predicted or true anywhere; in percent.
        """
        metrics = super().compute_metrics(results)
        if not self.format_only:
            intersection, union = (sum(areas) for areas in list(zip(*results))[:2])
            for name, inside, all_of_it in zip(self.dataset_meta['classes'], intersection, union):
                if all_of_it:
                    metrics[f'IoU.{name}'] = round(100 * float(inside / all_of_it), 2)
        return metrics
