# SPDX-License-Identifier: Apache-2.0
# Semantic segmentation of CamVid with a pretrained encoder: how does the way up to stride 4 matter?
config = 'camvid_model.py'
baseline = 'one-step'
upsamplers = {
    'one-step': None,
    'bilinear': dict(type='sapa_mm.Bilinear'),
    'CARAFE': dict(type='sapa_mm.CARAFE'),
    'DySample': dict(type='sapa_mm.DySample'),
    'FADE': dict(type='sapa_mm.FADE'),
    'SAPA-I': dict(type='sapa_mm.SAPA', similarity='inner'),
    'SAPA-B': dict(type='sapa_mm.SAPA', similarity='bilinear'),
    'SAPA-G': dict(type='sapa_mm.SAPA', similarity='gated'),
    'SAPA-D': dict(type='sapa_mm.SAPADeform'),
}
seeds = [0, 1, 2, 3, 4]
metrics = ['mIoU', '1px/bIoU', '2px/bIoU', '3px/bIoU', '5px/bIoU']
# for report.html, if the checkpoints are there
pictures = ['data/camvid/images/test/Seq05VD_f01710.jpg']
