# SPDX-License-Identifier: Apache-2.0
# The model of the studies known_signals_*.py (tools/_known_signals.py): label maps, averaged down and brought back.
custom_imports = dict(imports=['_known_signals'], allow_failed_imports=False)
default_scope = 'mmengine'
data_root = 'data/camvid'
num_classes = 12  # the last one is what is not labelled: a part of the signal, but not scored
iterations = 150
model = dict(type='sapa_mm.KnownSignalModel', num_classes=num_classes, ratio=4)
dataset = dict(type='sapa_mm.KnownSignals', data_root=data_root, num_classes=num_classes)
collate = dict(num_workers=0, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(splits=dict(train=1), crop=96, **dataset),
    **collate,
)
val_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(splits=dict(val=25), **dataset),
    **collate,
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(splits=dict(test=23, train=73), **dataset),
    **collate,
)
val_evaluator = dict(type='sapa_mm.KnownSignalErrors', scored=11)
test_evaluator = dict(type='sapa_mm.KnownSignalErrors', scored=11, kernels=True)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=10, end=iterations, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations),
)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
