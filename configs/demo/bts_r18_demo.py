# SPDX-License-Identifier: Apache-2.0
# Small enough for two CPU cores, from random weights: half the channels of ResNet-18, a quarter of the decoder's.
_base_ = [
    '../_base_/models/bts_r50.py',
    '../_base_/datasets/demo_depth.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_800_scratch.py',
]
model = dict(
    data_preprocessor=dict(size=(96, 128)),
    backbone=dict(depth=18, base_channels=32, stem_channels=32, freeze_published=False, init_cfg=None),
    decode_head=dict(in_channels=[32, 32, 64, 128, 256], channels=128),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=60),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=60, end=600),
]
train_cfg = dict(max_iters=600, val_interval=150)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=300, max_keep_ckpts=1))
randomness = dict(seed=0)
