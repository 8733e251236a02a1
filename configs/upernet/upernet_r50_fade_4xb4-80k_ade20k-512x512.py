# SPDX-License-Identifier: Apache-2.0
# Without the gate, as the published code builds FADE unless told otherwise; no config with FADE is published.
_base_ = './upernet_r50_4xb4-80k_ade20k-512x512.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.FADE', gating=False)))
