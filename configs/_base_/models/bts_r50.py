# SPDX-License-Identifier: Apache-2.0
# Nearest at all five steps, unless a config sets decode_head.upsample_cfg, which takes the first four.
model = dict(
    type='DepthEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=0,  # of depth: unknown
        size=(416, 544),
    ),
    backbone=dict(
        type='sapa_mm.ResNetWithStem',
        depth=50,
        freeze_published=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(
        type='sapa_mm.GuidedBTSHead',
        in_channels=[64, 256, 512, 1024, 2048],
        channels=512,
        max_depth=10.0,
        loss_decode=dict(type='sapa_mm.SILogLoss', variance_focus=0.85, min_depth=0.1, loss_weight=10.0),
    ),
    test_cfg=dict(mode='whole'),
)
