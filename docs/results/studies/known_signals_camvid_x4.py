# SPDX-License-Identifier: Apache-2.0
# Label maps of CamVid, a quarter of the size, brought back: which upsampler finds the boundaries?
config = 'known_signals_model.py'
place = 'model.upsample_cfg'
baseline = 'bilinear'
upsamplers = {
    'bilinear': dict(type='sapa_mm.Bilinear'),
    'colour': dict(type='sapa_mm.ColourStep'),
    'CARAFE': dict(type='sapa_mm.CARAFE'),
    'DySample': dict(type='sapa_mm.DySample'),
    'FADE': dict(type='sapa_mm.FADE'),
    'SAPA-I': dict(type='sapa_mm.SAPA', similarity='inner'),
    'SAPA-B': dict(type='sapa_mm.SAPA', similarity='bilinear'),
    'SAPA-G': dict(type='sapa_mm.SAPA', similarity='gated'),
    'LDA-AQU': dict(type='sapa_mm.LDAAQU'),
    'SAPA-D': dict(type='sapa_mm.SAPADeform'),
}
seeds = [0, 1, 2]
metrics = ['error.3px', 'error.1px', 'error.inside', 'error.all']
