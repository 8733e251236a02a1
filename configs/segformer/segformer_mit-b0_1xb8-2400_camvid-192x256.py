# SPDX-License-Identifier: Apache-2.0
# From random weights and small enough for two CPU cores: 128 head channels, crops of 192x256.
_base_ = [
    '../_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/camvid.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_2400_scratch.py',
]
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(channels=128, num_classes=11),
)
default_hooks = dict(checkpoint=dict(interval=400, max_keep_ckpts=2))
randomness = dict(seed=0)
