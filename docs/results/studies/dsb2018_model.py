# SPDX-License-Identifier: Apache-2.0
# The model of the study dsb2018.py: Mask R-CNN with FPN on an encoder with ImageNet weights, which is fine-tuned.
# Not among configs/, since it needs timm and converted weights (docs/convert_weights.md).
_base_ = [
    '../../../configs/_base_/models/mask-rcnn_r18_fpn.py',
    '../../../configs/_base_/default_runtime.py',
]
default_scope = 'mmdet'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _delete_=True,
        type='mmseg.TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        pretrained=False,
        features_only=True,
        out_indices=(1, 2, 3, 4),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientnet-lite0.pth'),
    ),
    neck=dict(in_channels=[24, 40, 112, 320]),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
)
data_root = 'data/dsb2018/'
metainfo = dict(classes=('nucleus',), palette=[(220, 60, 60)])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomCrop', crop_size=(256, 256)),
    # nuclei have no upright position
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(type='CocoDataset', metainfo=metainfo, data_root=data_root)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/val/'),
        test_mode=True,
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='annotations/test.json',
        data_prefix=dict(img='images/test/'),
        test_mode=True,
        pipeline=test_pipeline,
        **dataset,
    ),
)
masks_and_boxes = dict(metric=['bbox', 'segm'])
truth = dict(ann_file=data_root + 'annotations/test.json')
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', **masks_and_boxes)
test_evaluator = [
    dict(type='CocoMetric', **truth, **masks_and_boxes),
    dict(type='sapa_mm.CocoMetricAt', iou_thrs=[0.9], prefix='iou90', **truth, **masks_and_boxes),
    # Most nuclei are narrower than twice the usual 2 % of the diagonal.
    dict(type='sapa_mm.BoundaryCocoMetric', width=2, prefix='boundary', **truth),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2)), norm_decay_mult=0.0),
    clip_grad=dict(max_norm=10),
)
iterations = 600
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=40, end=iterations, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=300)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(interval=60, max_keep_ckpts=1, save_best='coco/segm_mAP'),
    logger=dict(interval=20),
    visualization=dict(type='DetVisualizationHook'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
tta_model = None
