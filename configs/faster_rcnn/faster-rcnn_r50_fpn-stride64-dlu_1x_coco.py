# SPDX-License-Identifier: Apache-2.0
_base_ = './faster-rcnn_r50_fpn-stride64_1x_coco.py'
model = dict(neck=dict(upsample_cfg=dict(type='sapa_mm.DLU')))
