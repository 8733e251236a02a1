# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/matting_r34.py',
    '../_base_/datasets/composition1k.py',
    '../_base_/matting_runtime.py',
    '../_base_/schedules/schedule_matting_180k.py',
]
model = dict(backbone=dict(upsample_cfg=dict(type='sapa_mm.Nearest')))
