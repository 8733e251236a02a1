# SPDX-License-Identifier: Apache-2.0
# 50 epochs of 24,231 images in batches of 4, evaluated every 500 iterations.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(decay_mult=0.0))),
)
param_scheduler = [dict(type='PolyLR', eta_min=1e-5, power=0.9, by_epoch=False, begin=0, end=302900)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=302900, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=4)
