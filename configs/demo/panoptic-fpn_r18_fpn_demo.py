# SPDX-License-Identifier: Apache-2.0
# The Mask R-CNN of the demo with mmdet's semantic and fusion heads; the background is the one class of stuff.
_base_ = [
    '../_base_/models/mask-rcnn_r18_fpn.py',
    '../_base_/datasets/demo_panoptic.py',
    '../_base_/schedules/schedule_800_scratch.py',
    'mmdet::_base_/default_runtime.py',
]
classes = dict(num_things_classes=4, num_stuff_classes=1)
model = dict(
    type='PanopticFPN',
    data_preprocessor=dict(pad_seg=True),
    semantic_head=dict(
        type='PanopticFPNHead',
        in_channels=64,
        inner_channels=64,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type='GN', num_groups=32, requires_grad=True),
        conv_cfg=None,
        loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
        **classes,
    ),
    panoptic_fusion_head=dict(type='HeuristicFusionHead', **classes),
    test_cfg=dict(
        rcnn=dict(score_thr=0.6, nms=dict(class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=256),
    ),
)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=400, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
