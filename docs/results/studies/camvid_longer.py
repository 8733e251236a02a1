# SPDX-License-Identifier: Apache-2.0
# The baseline of camvid.py for three times as long: had it stopped gaining?
_base_ = 'camvid.py'
upsamplers = dict(_delete_=True, **{'one-step': None})
seeds = [0]
options = {'train_cfg.max_iters': 1620, 'train_cfg.val_interval': 540, 'param_scheduler.1.end': 1620}
