# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/bts_r50.py',
    '../_base_/datasets/nyu_bts.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_bts_50e.py',
]
# The best checkpoint of each measure is kept, as published: the numbers of one row need not come from one checkpoint.
default_hooks = dict(
    checkpoint=dict(
        interval=500,
        max_keep_ckpts=1,
        save_best=['silog', 'abs_rel', 'log10', 'rms', 'sq_rel', 'log_rms', 'd1', 'd2', 'd3'],
        rule=['less'] * 6 + ['greater'] * 3,
    ),
)
