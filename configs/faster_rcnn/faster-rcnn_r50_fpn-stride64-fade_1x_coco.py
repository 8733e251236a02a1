# SPDX-License-Identifier: Apache-2.0
# Without the gate: both published configs with FADE build it so.
_base_ = './faster-rcnn_r50_fpn-stride64_1x_coco.py'
model = dict(neck=dict(upsample_cfg=dict(type='sapa_mm.FADE', gating=False)))
