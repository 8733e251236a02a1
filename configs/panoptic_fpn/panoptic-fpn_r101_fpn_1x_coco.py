# SPDX-License-Identifier: Apache-2.0
# The baseline (nearest) is mmdet's own, the step of three levels. Its data pipeline needs panopticapi: docs/data.md.
_base_ = 'mmdet::panoptic_fpn/panoptic-fpn_r101_fpn_1x_coco.py'
