# SPDX-License-Identifier: Apache-2.0
"""The matte of a single picture."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from .mattor import MattingSample, trimap_of
from .transforms import read_image


def predict_alpha(model: nn.Module, image: str | Path | np.ndarray, trimap: str | Path | np.ndarray) -> np.ndarray:
    """The matte of a picture of any size.

    Args:
        model: A :class:`Mattor`.
        image: File, or pixels in RGB order, ``(H, W, 3)`` uint8.
        trimap: File, or values ``(H, W)`` uint8: 0 background, 255 foreground, all else unknown.

    Returns:
        ``(H, W)`` uint8, 255 opaque. Known regions are those of the trimap.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the pixels are not uint8.
        ValueError: If a file is no picture, or the shapes do not fit.
    """
    pixels = image if isinstance(image, np.ndarray) else read_image(str(image), True)
    values = trimap if isinstance(trimap, np.ndarray) else read_image(str(trimap), False)
    if pixels.dtype != np.uint8:
        raise TypeError(f'the picture must have dtype uint8, got {pixels.dtype}')
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f'the picture must have the shape (H, W, 3), got {pixels.shape}')
    sample = MattingSample(trimap=torch.from_numpy(trimap_of(values)))
    inputs = torch.from_numpy(np.ascontiguousarray(pixels)).movedim(2, 0)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            result = model.test_step(dict(inputs=[inputs], data_samples=[sample]))[0]
    finally:
        model.train(training)
    return result.pred_alpha.numpy()
