# SPDX-License-Identifier: Apache-2.0
"""Depth of single pictures, and a painting of it."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import nn


def predict_depth(model: nn.Module, image: str | Path | np.ndarray, focal: float | None = None) -> np.ndarray:
    """The depth of a picture of any size.

    The pipeline of the model's data set is not used, since it reads true depth; the model needs no more than pixels.

    Args:
        model: A ``DepthEstimator``, such as ``mmseg.apis.init_model(config, checkpoint, device)`` gives.
        image: File, or pixels in BGR order, ``(H, W, 3)`` in [0, 255].
        focal: Focal length of the camera in pixels, for a head with a ``focal_length``. Defaults to None.

    Returns:
        ``(H, W)`` float32, in metres.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the picture does not have three channels.
    """
    pixels = image if isinstance(image, np.ndarray) else mmcv.imread(str(image))
    if pixels is None:
        raise ValueError(f'{image} is no picture that can be read')
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f'the picture must have the shape (H, W, 3), got {pixels.shape}')
    size = pixels.shape[:2]
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    if focal is not None:
        sample.set_metainfo(dict(focal=focal))
    inputs = torch.from_numpy(np.ascontiguousarray(pixels)).movedim(2, 0)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            result = model.test_step(dict(inputs=[inputs], data_samples=[sample]))[0]
    finally:
        model.train(training)
    return result.pred_depth_map.data[0].float().cpu().numpy()


def paint_depth(depth: np.ndarray, max_depth: float | None = None) -> np.ndarray:
    """Paint a depth map: near is red, far is blue, unknown is black.

    Args:
        depth: ``(H, W)``, in metres, 0 where unknown.
        max_depth: What becomes the deepest blue. Defaults to the greatest depth of the map.

    Returns:
        ``(H, W, 3)`` uint8 in BGR order, as ``cv2.imwrite`` takes it.
    """
    known = np.isfinite(depth) & (depth > 0)
    if max_depth is None:
        max_depth = depth[known].max() if known.any() else 1.0
    near = 1 - np.where(known, depth, 0).clip(0, max_depth) / max_depth
    painted = cv2.applyColorMap(np.round(255 * near).astype(np.uint8), cv2.COLORMAP_TURBO)
    painted[~known] = 0
    return painted
