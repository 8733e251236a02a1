# SPDX-License-Identifier: Apache-2.0
# Four top-down steps, the first from a level of stride 64, as in mmdet's FPN_CARAFE: what the published tables with
# 46.8M parameters for nearest interpolation were made with.
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    neck=dict(type='sapa_mm.GuidedFPN', extra_in_path=True),
)
