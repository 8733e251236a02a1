# SPDX-License-Identifier: Apache-2.0
_base_ = './upernet_r50_4xb4-80k_ade20k-512x512.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='inner')))
