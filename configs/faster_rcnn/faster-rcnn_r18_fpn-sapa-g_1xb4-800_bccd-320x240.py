# SPDX-License-Identifier: Apache-2.0
_base_ = './faster-rcnn_r18_fpn_1xb4-800_bccd-320x240.py'
model = dict(neck=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated')))
