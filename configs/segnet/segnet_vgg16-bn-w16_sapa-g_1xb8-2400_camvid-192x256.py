# SPDX-License-Identifier: Apache-2.0
_base_ = './segnet_vgg16-bn-w16_1xb8-2400_camvid-192x256.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated')))
