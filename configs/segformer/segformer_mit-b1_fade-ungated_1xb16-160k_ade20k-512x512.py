# SPDX-License-Identifier: Apache-2.0
# Without the gate, as the code behind the published 43.06 builds FADE unless told otherwise.
_base_ = './segformer_mit-b1_1xb16-160k_ade20k-512x512.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.FADE', gating=False)))
