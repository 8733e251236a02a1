# SPDX-License-Identifier: Apache-2.0
# From random weights and small enough for two CPU cores: a quarter of the channels, crops of 192x256.
_base_ = [
    '../_base_/models/segnet_vgg16-bn.py',
    '../_base_/datasets/camvid.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_2400_scratch.py',
]
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(base_channels=16),
    decode_head=dict(in_channels=[16, 32, 64, 128, 128, 128], channels=16, num_classes=11),
)
default_hooks = dict(checkpoint=dict(interval=400, max_keep_ckpts=2))
randomness = dict(seed=0)
