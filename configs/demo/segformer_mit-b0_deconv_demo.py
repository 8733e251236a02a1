# SPDX-License-Identifier: Apache-2.0
_base_ = './segformer_mit-b0_demo.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.Deconv')))
