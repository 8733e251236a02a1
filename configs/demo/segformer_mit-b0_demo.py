# SPDX-License-Identifier: Apache-2.0
# A few minutes on two CPU cores, from random weights.
_base_ = [
    '../_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/demo.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_2400_scratch.py',
]
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(drop_path_rate=0.0),
    # background is three quarters of the pixels: weighted down, or the small shapes are learnt last
    decode_head=dict(channels=64, num_classes=5, loss_decode=dict(class_weight=[0.3, 1.0, 1.0, 1.0, 1.0])),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=240),
]
train_cfg = dict(max_iters=240, val_interval=120)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=120, max_keep_ckpts=1))
randomness = dict(seed=0)
