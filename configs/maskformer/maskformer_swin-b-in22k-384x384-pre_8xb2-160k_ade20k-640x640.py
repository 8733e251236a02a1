# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/maskformer_swin-b.py',
    '../_base_/datasets/ade20k_640x640.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k.py',
]
pretrained = (
    'https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/'
    'swin_base_patch4_window12_384_22k_20220317-e5c09f74.pth'
)
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))

# one learning rate for all; no decay for norms, position biases and queries
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={'relative_position_bias_table': no_decay, 'query_embed': no_decay}, norm_decay_mult=0.0
    ),
)
# Poly decay from iteration 0, times the warm-up, as published; both reach their end value one step before `end`.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=160001),
]
train_cfg = dict(val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000, save_best='mIoU'))
