# SPDX-License-Identifier: Apache-2.0
"""CamVid in the 11-class form of the SegNet tutorial."""

from mmseg.datasets import BaseSegDataset

from sapa_mm.registry import DATASETS


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid: 367 training, 101 validation and 233 test frames of 480x360, 11 classes, 255 is not scored.

    Layout and source: ``docs/data.md``.

    Args:
        img_suffix (str): Suffix of the images. Default: '.jpg'.
        seg_map_suffix (str): Suffix of the label maps, 8-bit with values 0 to 10 and 255. Default: '.png'.
        **kwargs: The arguments of mmseg's ``BaseSegDataset``.
    """

    METAINFO = dict(
        classes=(
            'Sky',
            'Building',
            'Pole',
            'Road',
            'Pavement',
            'Tree',
            'SignSymbol',
            'Fence',
            'Car',
            'Pedestrian',
            'Bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    def __init__(self, img_suffix='.jpg', seg_map_suffix='.png', **kwargs):
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
