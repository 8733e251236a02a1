# SPDX-License-Identifier: Apache-2.0
_base_ = './segformer_mit-b1_1xb16-160k_ade20k-512x512.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.DySample')))
