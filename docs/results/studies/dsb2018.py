# SPDX-License-Identifier: Apache-2.0
# Nuclei of DSB2018 with a pretrained encoder: how does the top-down path of FPN matter? Nearest is FPN's own.
config = 'dsb2018_model.py'
place = 'model.neck.upsample_cfg'
baseline = 'nearest'
upsamplers = {
    'nearest': None,
    'CARAFE': dict(type='sapa_mm.CARAFE'),
    'DySample': dict(type='sapa_mm.DySample'),
    'SAPA-B': dict(type='sapa_mm.SAPA', similarity='bilinear'),
    'SAPA-G': dict(type='sapa_mm.SAPA', similarity='gated'),
    'LDA-AQU': dict(type='sapa_mm.LDAAQU'),
    'FreqFusion': dict(type='sapa_mm.FreqFusion', resample=True),
}
seeds = [0, 1, 2]
metrics = [
    'coco/segm_mAP', 'boundary/segm_mAP', 'coco/bbox_mAP', 'coco/segm_mAP_75', 'iou90/segm_mAP', 'coco/bbox_mAP_75',
    'iou90/bbox_mAP',
]  # fmt: skip
percent = metrics
