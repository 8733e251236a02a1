# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/bts_r50.py',
    '../_base_/datasets/nyu_bts.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_bts_50e.py',
]
