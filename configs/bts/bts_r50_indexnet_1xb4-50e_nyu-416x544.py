# SPDX-License-Identifier: Apache-2.0
_base_ = './bts_r50_1xb4-50e_nyu-416x544.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.IndexNet')))
