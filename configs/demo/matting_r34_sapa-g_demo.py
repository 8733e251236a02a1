# SPDX-License-Identifier: Apache-2.0
_base_ = './matting_r34_nearest_demo.py'
model = dict(backbone=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated')))
