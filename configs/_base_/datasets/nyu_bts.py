# SPDX-License-Identifier: Apache-2.0
data_root = 'data/nyu'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='sapa_mm.LoadDepth'),
    # the part of a 640x480 frame that has depth
    dict(type='sapa_mm.CropBox', box=(45, 472, 43, 608)),
    dict(type='RandomRotate', prob=1.0, degree=2.5, pad_val=0, seg_pad_val=0),
    dict(type='RandomCrop', crop_size=(416, 544)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='sapa_mm.RandomColor', prob=0.5),
    dict(type='PackSegInputs'),
]
# whole frames of 640x480
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='sapa_mm.LoadDepth'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='sapa_mm.BTSDataset',
        data_root=data_root,
        ann_file='nyudepthv2_train_files_with_gt.txt',
        data_prefix=dict(img_path='sync', depth_map_path='sync'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='sapa_mm.BTSDataset',
        data_root=data_root,
        ann_file='nyudepthv2_test_files_with_gt.txt',
        data_prefix=dict(img_path='official_splits/test', depth_map_path='official_splits/test'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='sapa_mm.DepthAccuracy', min_depth=1e-3, max_depth=10.0, crop='eigen')
test_evaluator = val_evaluator
