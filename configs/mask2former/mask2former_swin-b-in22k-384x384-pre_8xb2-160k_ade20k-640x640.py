# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/mask2former_swin-b.py',
    '../_base_/datasets/ade20k_640x640.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k.py',
]
pretrained = (
    'https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/'
    'swin_base_patch4_window12_384_22k_20220317-e5c09f74.pth'
)
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))

# backbone x0.1; no decay for norms, position and query embeddings
depths = [2, 2, 18, 2]
backbone_embed_multi = dict(lr_mult=0.1, decay_mult=0.0)
embed_multi = dict(lr_mult=1.0, decay_mult=0.0)
custom_keys = {
    'backbone': dict(lr_mult=0.1, decay_mult=1.0),
    'backbone.patch_embed.norm': backbone_embed_multi,
    'backbone.norm': backbone_embed_multi,
    'absolute_pos_embed': backbone_embed_multi,
    'relative_position_bias_table': backbone_embed_multi,
    'query_embed': embed_multi,
    'query_feat': embed_multi,
    'level_embed': embed_multi,
}
custom_keys.update(
    {
        f'backbone.stages.{stage}.blocks.{block}.norm': backbone_embed_multi
        for stage, depth in enumerate(depths)
        for block in range(depth)
    }
)
custom_keys.update({f'backbone.stages.{stage}.downsample.norm': backbone_embed_multi for stage in range(3)})
# bfloat16, not float16: the losses of Mask2Former are known to become NaN in float16. The pixel decoder, and with it
# the upsampler, works in float32 all the same, as published.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(custom_keys=custom_keys, norm_decay_mult=0.0),
)
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, by_epoch=False, begin=0, end=160001)]
train_cfg = dict(val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000, save_best='mIoU'))
