# SPDX-License-Identifier: Apache-2.0
# The paper counts 12.26 M: hidden maps of twice the width that the published block has, which gives 6.13 M.
_base_ = './matting_r34_nearest_2xb8-180k_composition1k-512x512.py'
model = dict(backbone=dict(upsample_cfg=dict(type='sapa_mm.IndexNet', use_nonlinear=True, use_context=True)))
