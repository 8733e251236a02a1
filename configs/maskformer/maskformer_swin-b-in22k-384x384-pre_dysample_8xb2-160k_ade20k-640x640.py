# SPDX-License-Identifier: Apache-2.0
_base_ = './maskformer_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'
model = dict(decode_head=dict(pixel_decoder=dict(upsample_cfg=dict(type='sapa_mm.DySample'))))
