# SPDX-License-Identifier: Apache-2.0
# Small enough for two CPU cores, from random weights.
_base_ = [
    '../_base_/models/matting_r34.py',
    '../_base_/datasets/demo_matting.py',
    '../_base_/matting_runtime.py',
    '../_base_/schedules/schedule_matting_180k.py',
]
model = dict(backbone=dict(upsample_cfg=dict(type='sapa_mm.Nearest'), init_cfg=None))
optim_wrapper = dict(
    optimizer=dict(lr=1e-2),  # for all, since the encoder starts from random weights too
    paramwise_cfg=None,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=20, end=200),
]
train_cfg = dict(max_iters=200, val_interval=100)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100, max_keep_ckpts=1))
randomness = dict(seed=0)
