# SPDX-License-Identifier: Apache-2.0
"""Data sets that mmseg and mmdet do not have, and the check that the data are where a config says."""

from sapa_mm.registry import DATASETS, TRANSFORMS, import_or_explain

from .paths import check_data_paths

CamVidDataset = import_or_explain('.camvid', 'CamVidDataset', 'mmseg', DATASETS, __package__)
SUNRGBDDataset = import_or_explain('.sunrgbd', 'SUNRGBDDataset', 'mmseg', DATASETS, __package__)
LoadPanopticSegments = import_or_explain('.panoptic', 'LoadPanopticSegments', 'mmdet', TRANSFORMS, __package__)
#: Its name until version 0.1, which is that of its parent; configs may have it.
LoadPanopticAnnotations = TRANSFORMS.register_module(name='LoadPanopticAnnotations', module=LoadPanopticSegments)

__all__ = [
    'CamVidDataset',
    'LoadPanopticAnnotations',
    'LoadPanopticSegments',
    'SUNRGBDDataset',
    'check_data_paths',
]
