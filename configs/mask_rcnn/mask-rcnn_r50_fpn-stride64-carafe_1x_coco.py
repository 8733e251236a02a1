# SPDX-License-Identifier: Apache-2.0
# CARAFE in the mask head too, as in mmdet's model of this name.
_base_ = './mask-rcnn_r50_fpn-stride64_1x_coco.py'
model = dict(
    neck=dict(upsample_cfg=dict(type='sapa_mm.CARAFE')),
    roi_head=dict(mask_head=dict(type='sapa_mm.GuidedMaskHead', upsample_cfg=dict(type='sapa_mm.CARAFE'))),
)
