# SPDX-License-Identifier: Apache-2.0
# Published with a backbone map of its own channels as guide; here the guide is the lateral, which keeps its 1x1.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(neck=dict(type='sapa_mm.GuidedFPN', upsample_cfg=dict(type='sapa_mm.FaPNAlign')))
