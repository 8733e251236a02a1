# SPDX-License-Identifier: Apache-2.0
# Without the gate, as in the Faster R-CNN of the same tables.
_base_ = './mask-rcnn_r50_fpn-stride64_1x_coco.py'
model = dict(neck=dict(upsample_cfg=dict(type='sapa_mm.FADE', gating=False)))
