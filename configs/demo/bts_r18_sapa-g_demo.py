# SPDX-License-Identifier: Apache-2.0
_base_ = './bts_r18_demo.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated')))
