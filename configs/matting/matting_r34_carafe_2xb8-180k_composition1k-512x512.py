# SPDX-License-Identifier: Apache-2.0
_base_ = './matting_r34_nearest_2xb8-180k_composition1k-512x512.py'
model = dict(backbone=dict(upsample_cfg=dict(type='sapa_mm.CARAFE')))
