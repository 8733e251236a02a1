# SPDX-License-Identifier: Apache-2.0
# The width of the repository's table, +0.04 M; the paper's draft counts 64, +0.07 M, and prints other errors.
_base_ = './matting_r34_nearest_2xb8-180k_composition1k-512x512.py'
model = dict(backbone=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='bilinear')))
