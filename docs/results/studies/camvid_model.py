# SPDX-License-Identifier: Apache-2.0
# The model of the study camvid.py: SegFormer's head on an encoder with ImageNet weights, which is fine-tuned.
# Not among configs/, since it needs timm and converted weights (docs/convert_weights.md).
_base_ = [
    '../../../configs/_base_/models/segformer_mit-b0.py',
    '../../../configs/_base_/datasets/camvid.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, size=(240, 320)),
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        pretrained=False,
        features_only=True,
        out_indices=(1, 2, 3, 4),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientnet-lite0.pth'),
    ),
    decode_head=dict(
        in_channels=[24, 40, 112, 320],
        channels=64,
        num_classes=11,
        # 1 / ln(1.02 + share of the training pixels), as in ENet, with a mean of 1: Sky, Building, Pole,
        # Road, Pavement, Tree, SignSymbol, Fence, Car, Pedestrian, Bicyclist
        loss_decode=dict(class_weight=[0.84, 0.64, 4.92, 0.5, 2.3, 1.3, 4.63, 4.69, 1.91, 5.55, 6.39]),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(320, 240), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(240, 320), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
# The network sees 320x240, the labels keep their 480x360.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = [
    dict(type='sapa_mm.ClassIoU'),
    *[dict(type='sapa_mm.BoundaryIoU', width=width, per_class=True, prefix=f'{width}px') for width in (1, 2, 3, 5)],
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5)), norm_decay_mult=0.0),
)
iterations = 540
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=40, end=iterations, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=180)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(interval=60, max_keep_ckpts=1, save_best='mIoU'), logger=dict(interval=20))
