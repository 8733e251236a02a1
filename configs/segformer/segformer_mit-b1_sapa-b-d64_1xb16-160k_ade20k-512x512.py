# SPDX-License-Identifier: Apache-2.0
# The paper's default width; the training log that reaches 43.41 has 32.
_base_ = './segformer_mit-b1_1xb16-160k_ade20k-512x512.py'
model = dict(decode_head=dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='bilinear', embed_dims=64)))
