# SPDX-License-Identifier: Apache-2.0
# As known_signals_camvid_x4.py, with guides that know every label: what would a perfect encoder be worth?
# Not FADE, which could copy such a guide, and nothing that uses no guide but the baseline.
_base_ = 'known_signals_camvid_x4.py'
upsamplers = {
    '_delete_': True,
    'bilinear': dict(type='sapa_mm.Bilinear'),
    'SAPA-I': dict(type='sapa_mm.SAPA', similarity='inner'),
    'SAPA-B': dict(type='sapa_mm.SAPA', similarity='bilinear'),
    'SAPA-G': dict(type='sapa_mm.SAPA', similarity='gated'),
    'SAPA-D': dict(type='sapa_mm.SAPADeform'),
}
options = {'model.true_guide': True}
