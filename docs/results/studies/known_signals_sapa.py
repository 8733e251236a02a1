# SPDX-License-Identifier: Apache-2.0
# As known_signals_camvid_x4.py, on the validation pictures alone: what do SAPA's own options change?
_base_ = 'known_signals_camvid_x4.py'
baseline = 'SAPA-G'
gated = dict(type='sapa_mm.SAPA', similarity='gated')
upsamplers = {
    '_delete_': True,
    'SAPA-G': gated,
    'K=3': dict(gated, kernel_size=3),
    'd=16': dict(gated, embed_dims=16),
    'd=64': dict(gated, embed_dims=64),
    'no norm': dict(gated, norm=None),
    'shared gate': dict(gated, gate='shared'),
    'plain': dict(gated, similarity='plain'),
    'SAPA-B K=3': dict(type='sapa_mm.SAPA', similarity='bilinear', kernel_size=3),
}
options = {'test_dataloader.dataset.splits': dict(_delete_=True, val=10)}
