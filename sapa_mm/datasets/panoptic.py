# SPDX-License-Identifier: Apache-2.0
"""Panoptic annotations of COCO's format without panopticapi, of which there is no release to install."""

import mmcv
import numpy as np
from mmdet.datasets.transforms import LoadAnnotations, LoadPanopticAnnotations

from sapa_mm.registry import TRANSFORMS


def segment_ids(rgb: np.ndarray) -> np.ndarray:
    """The numbers that COCO's panoptic pictures encode, ``R + 256 G + 256^2 B``.

    Args:
        rgb (ndarray): ``(H, W, 3)``, uint8.

    Returns:
        ndarray: ``(H, W)``, int32.
    """
    return rgb.astype(np.int32) @ np.array([1, 256, 256**2], dtype=np.int32)


def read_segment_ids(path: str) -> np.ndarray:
    """:func:`segment_ids` of a file."""
    return segment_ids(mmcv.imread(path, channel_order='rgb'))


@TRANSFORMS.register_module()
class LoadPanopticSegments(LoadPanopticAnnotations):
    """LoadPanopticAnnotations of mmdet, whose constructor asks for panopticapi because of one line of arithmetic.

    Args:
        **kwargs: As the parent: ``with_bbox``, ``with_label``, ``with_mask`` and ``with_seg``, all True by default,
            ``box_type``, ``imdecode_backend``, ``backend_args``.
    """

    def __init__(self, **kwargs) -> None:
        LoadAnnotations.__init__(self, **{'with_mask': True, 'with_seg': True, **kwargs})
        self.rgb2id = segment_ids
