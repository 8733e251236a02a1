# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k.py',
]
checkpoint = 'https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b1_20220624-02e5a6a1.pth'
model = dict(
    backbone=dict(
        type='sapa_mm.MixVisionTransformer', init_cfg=dict(type='Pretrained', checkpoint=checkpoint), embed_dims=64
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512], published_form=True),
)
# 'head' is matched before 'norm': the norms of head and upsamplers decay too, as in the published runs
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'pos_block': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
            'head': dict(lr_mult=10.0),
        }
    ),
)
# Poly decay from iteration 0, times the warm-up, as published; both reach their end value one step before `end`.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160001),
]
# The published numbers are the best of the ten evaluations.
default_hooks = dict(checkpoint=dict(save_best='mIoU'))
# BN over all 16 images on several GPUs too; on one GPU, as published, it stays plain BN.
sync_bn = 'torch'
