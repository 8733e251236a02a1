# SPDX-License-Identifier: Apache-2.0
# Four top-down steps, the first from a level of stride 64, as the published tables of this model count.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    neck=dict(type='sapa_mm.GuidedFPN', extra_in_path=True),
)
