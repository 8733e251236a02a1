# SPDX-License-Identifier: Apache-2.0
_base_ = './segnet_vgg16-bn_1xb8-200e_sunrgbd-480x480.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.A2U')))
