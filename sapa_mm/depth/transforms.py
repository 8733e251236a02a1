# SPDX-License-Identifier: Apache-2.0
"""Loading and augmentation of images with depth maps, where mmseg's transforms do something else.

Its ``RandomRotate`` (with ``pad_val=0`` and ``seg_pad_val=0``, the depth that means unknown), ``RandomCrop`` and
``RandomFlip`` do for depth what they do for labels.
"""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets.transforms import LoadDepthAnnotation

from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadDepth(LoadDepthAnnotation):
    """LoadDepthAnnotation of mmseg for 16-bit PNG, in metres, which looks at what it read.

    Args:
        depth_scale (float): Steps per metre in the file. Defaults to 1000, of NYU Depth v2; KITTI has 256.
        backend_args (dict, optional): File back end of mmengine. Defaults to None.

    Raises:
        ValueError: If ``depth_scale`` is not positive, the file is no map of one channel, or its size is not that of
            the image.
    """

    def __init__(self, depth_scale: float = 1000.0, backend_args: dict | None = None) -> None:
        if not depth_scale > 0:
            raise ValueError(f'depth_scale must be positive, got {depth_scale}')
        super().__init__(depth_rescale_factor=1 / depth_scale, backend_args=backend_args)

    def transform(self, results: dict) -> dict:
        """Add ``gt_depth_map``, ``(H, W)`` float32, and its name to ``seg_fields``."""
        path = results['depth_map_path']
        try:
            results = super().transform(results)
        except AttributeError:  # what OpenCV gives for a file that it cannot read is None
            raise ValueError(f'{path} is no picture that can be read') from None
        depth, image = results['gt_depth_map'], results.get('img')
        if depth.ndim != 2:
            raise ValueError(f'{path} must have one channel, got the shape {depth.shape}')
        if image is not None and depth.shape != image.shape[:2]:
            raise ValueError(f'{path} must have the size of its image, {image.shape[:2]}, got {depth.shape}')
        return results


@TRANSFORMS.register_module()
class CropBox(BaseTransform):
    """Cut the same box out of every image and its maps, such as the part of a frame that has depth.

    Args:
        box (Sequence[int]): Top, bottom, left, right in pixels; bottom and right are exclusive.

    Raises:
        ValueError: If the box is out of order, or reaches beyond an image.
    """

    def __init__(self, box: Sequence[int]) -> None:
        if len(box) != 4 or not (0 <= box[0] < box[1] and 0 <= box[2] < box[3]):
            raise ValueError(f'box must be (top, bottom, left, right), got {tuple(box)}')
        self.box = tuple(box)

    def transform(self, results: dict) -> dict:
        """Crop ``img`` and all ``seg_fields``."""
        top, bottom, left, right = self.box
        for name in ('img', *results.get('seg_fields', [])):
            height, width = results[name].shape[:2]
            if bottom > height or right > width:
                raise ValueError(f'box {self.box} reaches beyond {name} of {height}x{width}')
            results[name] = results[name][top:bottom, left:right]
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(box={self.box})'


@TRANSFORMS.register_module()
class RandomColor(BaseTransform):
    """With probability ``prob``: a random gamma, then a random brightness, then a random factor for each channel.

    ``img = clip(brightness * color[c] * (img / 255)^gamma, 0, 1) * 255``, each drawn uniformly from its range. The
    result is float32.

    Args:
        prob (float): Between 0 and 1. Defaults to 0.5.
        gamma (Sequence[float]): Least and greatest. Defaults to (0.9, 1.1).
        brightness (Sequence[float]): Least and greatest. Defaults to (0.75, 1.25).
        color (Sequence[float]): Least and greatest. Defaults to (0.9, 1.1).

    Raises:
        ValueError: If an option is out of range.

    Source: https://arxiv.org/abs/1907.10326
    """

    def __init__(
        self,
        prob: float = 0.5,
        gamma: Sequence[float] = (0.9, 1.1),
        brightness: Sequence[float] = (0.75, 1.25),
        color: Sequence[float] = (0.9, 1.1),
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be between 0 and 1, got {prob}')
        for name, bounds in (('gamma', gamma), ('brightness', brightness), ('color', color)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f'{name} must be two positive numbers, the least first, got {tuple(bounds)}')
        self.prob, self.gamma, self.brightness, self.color = prob, gamma, brightness, color

    @cache_randomness
    def _draw(self, channels: int) -> tuple[float, np.ndarray] | None:
        if np.random.rand() >= self.prob:
            return None
        gamma, brightness = np.random.uniform(*self.gamma), np.random.uniform(*self.brightness)
        return gamma, brightness * np.random.uniform(*self.color, channels)

    def transform(self, results: dict) -> dict:
        """Change ``img``, ``(H, W, C)`` in [0, 255]."""
        image = results['img'].astype(np.float32)
        drawn = self._draw(image.shape[2])
        if drawn is not None:
            gamma, factors = drawn
            image = 255 * np.clip((image / 255) ** gamma * factors.astype(np.float32), 0, 1)
        results['img'] = image
        return results

    def __repr__(self) -> str:
        ranges = f'gamma={self.gamma}, brightness={self.brightness}, color={self.color}'
        return f'{type(self).__name__}(prob={self.prob}, {ranges})'
