# SPDX-License-Identifier: Apache-2.0
_base_ = './mask-rcnn_r18_fpn_demo.py'
model = dict(neck=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated')))
