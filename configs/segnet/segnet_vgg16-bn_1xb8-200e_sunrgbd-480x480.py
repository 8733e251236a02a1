# SPDX-License-Identifier: Apache-2.0
# The supplement's training for its pictures; it states neither the crop size nor the range of scales.
_base_ = [
    '../_base_/models/segnet_vgg16-bn.py',
    '../_base_/datasets/sunrgbd.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16_bn')))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))  # constant
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=10, max_keep_ckpts=2, save_best='mIoU'),
)
log_processor = dict(by_epoch=True)
