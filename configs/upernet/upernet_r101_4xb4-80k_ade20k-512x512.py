# SPDX-License-Identifier: Apache-2.0
_base_ = './upernet_r50_4xb4-80k_ade20k-512x512.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
