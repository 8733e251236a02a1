# SPDX-License-Identifier: Apache-2.0
# Small enough for two CPU cores, from random weights.
_base_ = [
    '../_base_/models/mask-rcnn_r18_fpn.py',
    '../_base_/datasets/demo_instance.py',
    '../_base_/schedules/schedule_800_scratch.py',
    'mmdet::_base_/default_runtime.py',
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=400, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
