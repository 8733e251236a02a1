# SPDX-License-Identifier: Apache-2.0
"""Data sets that mmseg and mmdet do not have, and the check that the data are where a config says."""

from sapa_mm.registry import DATASETS, TRANSFORMS, import_or_explain

from .paths import check_data_paths

CamVidDataset = import_or_explain('.camvid', 'CamVidDataset', 'mmseg', DATASETS, __package__)
SUNRGBDDataset = import_or_explain('.sunrgbd', 'SUNRGBDDataset', 'mmseg', DATASETS, __package__)
LoadPanopticAnnotations = import_or_explain('.panoptic', 'LoadPanopticAnnotations', 'mmdet', TRANSFORMS, __package__)

__all__ = ['CamVidDataset', 'LoadPanopticAnnotations', 'SUNRGBDDataset', 'check_data_paths']
