# SPDX-License-Identifier: Apache-2.0
# Foregrounds of Adobe's Composition-1k over pictures of COCO; tested on 1000 compositions over pictures of VOC.
data_root = 'data/composition1k'
train_pipeline = [
    dict(type='sapa_mm.LoadForeground', merge_prob=0.5),
    dict(type='sapa_mm.RandomForegroundResize', size=640, prob=0.25),
    dict(type='sapa_mm.RandomForegroundAffine', degrees=30, scale=(0.8, 1.25), shear=10, flip_prob=0.5),
    dict(type='sapa_mm.RandomMattingFlip', prob=0.5),
    dict(type='sapa_mm.GenerateTrimap', kernel_size=(1, 29)),
    dict(type='sapa_mm.CropAroundUnknown', size=512),
    dict(type='sapa_mm.RandomForegroundColour', hue=40),
    dict(type='sapa_mm.ComposeWithBackground'),
    dict(type='sapa_mm.PackMattingInputs'),
]
test_pipeline = [dict(type='sapa_mm.LoadMattingPicture'), dict(type='sapa_mm.PackMattingInputs')]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='sapa_mm.MattingTrainDataset',
        data_root=data_root,
        data_prefix=dict(foreground='train/fg', alpha='train/alpha', background='train/bg'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='sapa_mm.MattingTestDataset',
        data_root=data_root,
        data_prefix=dict(img_path='test/merged', trimap_path='test/trimaps', alpha_path='test/alpha'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='sapa_mm.MattingMetric', definition='matlab')
test_evaluator = val_evaluator
