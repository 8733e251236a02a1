# SPDX-License-Identifier: Apache-2.0
# Nearest at all four steps, unless a config sets backbone.upsample_cfg.
model = dict(
    type='sapa_mm.Mattor',
    data_preprocessor=dict(
        type='sapa_mm.MattingPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
    ),
    backbone=dict(
        type='sapa_mm.GuidedMattingNet',
        # The published encoder, a ResNet-34 with leaky ReLUs, can no longer be had.
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34'),
    ),
    loss=dict(type='sapa_mm.MattingLoss'),
)
