# SPDX-License-Identifier: Apache-2.0
# As known_signals_camvid_x4.py, with the nuclei of DSB2018: nucleus or background.
_base_ = 'known_signals_camvid_x4.py'
options = {
    'model.num_classes': 2,
    **{
        f'{loader}_dataloader.dataset.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in dict(data_root='data/dsb2018', num_classes=2).items()
    },
    'test_dataloader.dataset.splits': dict(test=9, train=50),
    'val_dataloader.dataset.splits': dict(val=12),
    'val_evaluator.scored': 2,
    'test_evaluator.scored': 2,
}
