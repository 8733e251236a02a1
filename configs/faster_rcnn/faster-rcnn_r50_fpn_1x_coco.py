# SPDX-License-Identifier: Apache-2.0
# The baseline (nearest) is mmdet's own; total batch 16, so 8 GPUs with 2 images, or --auto-scale-lr.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
