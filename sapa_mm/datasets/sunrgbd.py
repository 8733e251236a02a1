# SPDX-License-Identifier: Apache-2.0
"""SUN RGB-D with the 37 classes of its segmentation benchmark, images only."""

from mmseg.datasets import BaseSegDataset

from sapa_mm.registry import DATASETS

CLASSES = (
    'wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf', 'picture', 'counter',
    'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror', 'floor mat', 'clothes', 'ceiling', 'books',
    'fridge', 'tv', 'paper', 'towel', 'shower curtain', 'box', 'whiteboard', 'person', 'night stand', 'toilet', 'sink',
    'lamp', 'bathtub', 'bag',
)  # fmt: skip


@DATASETS.register_module()
class SUNRGBDDataset(BaseSegDataset):
    """SUN RGB-D: 5,285 training and 5,050 test images of indoor scenes, 37 classes, 0 is not scored.

    Layout and source: ``docs/data.md``.

    Args:
        img_suffix (str): Suffix of the images. Default: '.jpg'.
        seg_map_suffix (str): Suffix of the label maps, 8-bit with values 0 to 37. Default: '.png'.
        reduce_zero_label (bool): Whether 0 becomes 255, which is ignored, and the classes count from 0; the pipeline's
            ``LoadAnnotations`` must say the same. Default: True.
        **kwargs: The arguments of mmseg's ``BaseSegDataset``.
    """

    METAINFO = dict(classes=CLASSES)  # mmseg draws a fixed palette for data sets without one

    def __init__(self, img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=True, **kwargs):
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label, **kwargs
        )
