# SPDX-License-Identifier: Apache-2.0
# As camvid.py without the weights of ImageNet: what are they worth?
_base_ = 'camvid.py'
upsamplers = dict(_delete_=True, **{'one-step': None})
seeds = [0, 1, 2]
options = {'model.backbone.init_cfg': None}
