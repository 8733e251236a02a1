# SPDX-License-Identifier: Apache-2.0
# Published runs: 4 GPUs with 2 images each and learning rate 0.01, half of both here.
_base_ = './faster-rcnn_r50_fpn-stride64_1x_coco.py'
model = dict(neck=dict(upsample_cfg=dict(type='sapa_mm.LDAAQU')))
