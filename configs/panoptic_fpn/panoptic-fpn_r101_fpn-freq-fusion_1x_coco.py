# SPDX-License-Identifier: Apache-2.0
_base_ = './panoptic-fpn_r101_fpn_1x_coco.py'
model = dict(neck=dict(type='sapa_mm.GuidedFPN', upsample_cfg=dict(type='sapa_mm.FreqFusion', resample=True)))
