# SPDX-License-Identifier: Apache-2.0
# As camvid.py, tested on the validation pictures alone: does the smaller window help a trained network too?
_base_ = 'camvid.py'
baseline = 'SAPA-G'
upsamplers = {
    '_delete_': True,
    'SAPA-G': dict(type='sapa_mm.SAPA', similarity='gated'),
    'SAPA-G K=3': dict(type='sapa_mm.SAPA', similarity='gated', kernel_size=3),
}
seeds = [0, 1, 2]
options = {
    'test_dataloader.dataset.data_prefix.img_path': 'images/val',
    'test_dataloader.dataset.data_prefix.seg_map_path': 'annotations/val',
}
