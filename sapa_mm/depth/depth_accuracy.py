# SPDX-License-Identifier: Apache-2.0
"""How far predicted depth is from the truth, as the published tables measure it."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from ..registry import METRICS

#: Rows and columns of a 640x480 frame of NYU Depth v2 that are scored: top, bottom, left, right.
EIGEN_CROP = (45, 471, 41, 601)


@METRICS.register_module()
class DepthAccuracy(BaseMetric):
    """The nine measures of :func:`depth_errors`, each the mean of the images.

    Predictions are limited to ``[min_depth, max_depth]``, and NaN becomes ``min_depth``. Pixels of the crop are scored
    whose truth lies strictly between the bounds. An image without one has no measures and does not count; of no image
    at all the means are NaN. mmseg's ``DepthMetric`` does not limit predictions and has another ``silog``.

    Args:
        min_depth (float): Lower bound in metres, positive. Defaults to 1e-3.
        max_depth (float): Upper bound in metres. Defaults to 10.0.
        crop (str or Sequence[int], optional): Top, bottom, left and right of what is scored, in pixels, bottom and
            right exclusive; ``'eigen'`` is (45, 471, 41, 601). None is all. Defaults to None.
        output_dir (str, optional): Folder for the predictions, as 16-bit PNG of ``depth_scale`` steps per metre, each
            under the whole path of its image, since names repeat from scene to scene. None keeps nothing. Defaults to
            None.
        depth_scale (float): Steps per metre in those files. Defaults to 1000.
        collect_device (str): ``'cpu'`` or ``'gpu'``, where ranks exchange their results. Defaults to ``'cpu'``.
        prefix (str, optional): Put before the names of the results. Defaults to None.

    Raises:
        ValueError: If the bounds or the crop are out of order, or a prediction has another size than its truth, which
            must hold the crop.

    Source: https://arxiv.org/abs/1406.2283 and, for the bounds, https://arxiv.org/abs/1907.10326
    """

    def __init__(
        self,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        crop: str | Sequence[int] | None = None,
        output_dir: str | None = None,
        depth_scale: float = 1000.0,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not 0 < min_depth < max_depth:
            raise ValueError(f'bounds must be 0 < min_depth < max_depth, got {min_depth} and {max_depth}')
        if crop == 'eigen':
            crop = EIGEN_CROP
        if crop is not None and (
            isinstance(crop, str) or len(crop) != 4 or not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3])
        ):
            raise ValueError(f"crop must be 'eigen', None or (top, bottom, left, right), got {crop!r}")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.crop = crop
        self.output_dir = output_dir
        self.depth_scale = depth_scale

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Measure one batch.

        Args:
            data_batch: Not used.
            data_samples: Of each image ``pred_depth_map`` and ``gt_depth_map`` with maps ``(1, H, W)``, in metres.
        """
        for sample in data_samples:
            depth, truth = (sample[key]['data'].squeeze(0).cpu().numpy() for key in ('pred_depth_map', 'gt_depth_map'))
            if self.output_dir is not None:
                image = Path(sample['img_path']).with_suffix('.png')
                below = [part for part in image.parts if part not in (image.anchor, '..')]
                write_depth(Path(self.output_dir, *below), depth, self.depth_scale)
            self.results.append(self._measure(depth, truth))

    def _measure(self, depth: np.ndarray, truth: np.ndarray) -> dict[str, float] | None:
        if depth.shape != truth.shape:
            raise ValueError(f'prediction and truth must have one size, got {depth.shape} and {truth.shape}')
        if self.crop is not None:
            top, bottom, left, right = self.crop
            if bottom > truth.shape[0] or right > truth.shape[1]:
                raise ValueError(f'crop {tuple(self.crop)} reaches beyond a map of {truth.shape}')
            depth, truth = (x[top:bottom, left:right] for x in (depth, truth))
        valid = (truth > self.min_depth) & (truth < self.max_depth)
        if not valid.any():
            return None
        depth = np.nan_to_num(depth[valid].astype(np.float64), nan=self.min_depth, posinf=np.inf, neginf=-np.inf)
        return depth_errors(depth.clip(self.min_depth, self.max_depth), truth[valid])

    def compute_metrics(self, results: list[dict[str, float] | None]) -> dict[str, float]:
        """Average.

        Args:
            results: :func:`depth_errors` of each image; None of one without a valid pixel.

        Returns:
            The means, by name.
        """
        scored = [result for result in results if result is not None]
        if len(scored) < len(results):
            print_log(
                f'{len(results) - len(scored)} of {len(results)} images have no pixel with a true depth between '
                f'{self.min_depth} and {self.max_depth} m and are not counted',
                logger=MMLogger.get_current_instance(),
                level=logging.WARNING,
            )
        return {name: float(np.mean([r[name] for r in scored])) if scored else math.nan for name in NAMES}


NAMES = ('silog', 'abs_rel', 'log10', 'rms', 'sq_rel', 'log_rms', 'd1', 'd2', 'd3')


def depth_errors(depth: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measures of positive depths.

    With ``e = log(depth) - log(truth)``:

    =============  =====================================================================
    ``silog``      ``100 sqrt(mean(e^2) - mean(e)^2)``
    ``abs_rel``    ``mean(|depth - truth| / truth)``
    ``log10``      ``mean(|log10(depth) - log10(truth)|)``
    ``rms``        ``sqrt(mean((depth - truth)^2))``, metres
    ``sq_rel``     ``mean((depth - truth)^2 / truth)``, metres
    ``log_rms``    ``sqrt(mean(e^2))``
    ``d1 d2 d3``   part of the pixels with ``max(depth / truth, truth / depth) < 1.25^k``
    =============  =====================================================================

    Args:
        depth: Predicted, positive, any shape.
        truth: True, positive, same shape.

    Returns:
        The measures in the order of the table, computed in float64.
    """
    depth, truth = (x.astype(np.float64) for x in (depth, truth))
    difference, error = depth - truth, np.log(depth) - np.log(truth)
    ratio = np.maximum(depth / truth, truth / depth)
    values = (
        100 * error.std(),
        np.mean(np.abs(difference) / truth),
        np.mean(np.abs(error)) / math.log(10),
        math.sqrt(np.mean(difference**2)),
        np.mean(difference**2 / truth),
        math.sqrt(np.mean(error**2)),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    )
    return dict(zip(NAMES, map(float, values)))


def write_depth(path: Path, depth: np.ndarray, scale: float) -> None:
    """Write a depth map in metres as 16-bit PNG of ``scale`` steps per metre; what does not fit becomes its bound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.nan_to_num(depth.astype(np.float64) * scale, nan=0, posinf=65535, neginf=0)
    if not cv2.imwrite(str(path), np.round(steps).clip(0, 65535).astype(np.uint16)):
        raise OSError(f'{path} could not be written')
