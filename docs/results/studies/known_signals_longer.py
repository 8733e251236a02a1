# SPDX-License-Identifier: Apache-2.0
# known_signals_camvid_x4.py for ten times as long: had the upsamplers stopped gaining?
_base_ = 'known_signals_camvid_x4.py'
seeds = [0]
options = {'train_cfg.max_iters': 1500, 'train_cfg.val_interval': 300, 'param_scheduler.1.end': 1500}
