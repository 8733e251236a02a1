# SPDX-License-Identifier: Apache-2.0
# Max-unpooling at all five stages, unless a config sets decode_head.upsample_cfg.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(480, 480),
    ),
    backbone=dict(type='sapa_mm.SegNetEncoder', depth=16),
    decode_head=dict(
        type='sapa_mm.SegNetHead',
        in_channels=[64, 128, 256, 512, 512, 512],
        in_index=[0, 1, 2, 3, 4, 5],
        channels=64,
        num_convs=(1, 2, 3, 3, 3),
        dropout_ratio=0.0,
        num_classes=37,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    test_cfg=dict(mode='whole'),
)
