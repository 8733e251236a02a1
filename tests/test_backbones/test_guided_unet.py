# SPDX-License-Identifier: Apache-2.0
"""GuidedUNet against the UNet of mmseg."""

import pytest
import torch
from torch import nn

import sapa_mm

UNet = pytest.importorskip('mmseg.models').backbones.UNet
SAPA = dict(type='SAPA', embed_dims=8)
# the last stage keeps the size: its step of the decoder has no resize
OPTIONS = dict(
    base_channels=8,
    num_stages=4,
    strides=(1, 1, 2, 1),
    enc_num_convs=(1, 2, 1, 1),
    dec_num_convs=(2, 1, 1),
    downsamples=(True, True, False),
    enc_dilations=(1, 1, 1, 1),
    dec_dilations=(1, 1, 1),
)


def pair(upsample_cfg, parent_cfg=None, **options):
    torch.manual_seed(0)
    parent = UNet(upsample_cfg=parent_cfg or dict(type='mmseg.InterpConv', **options), **OPTIONS)
    for parameter in parent.parameters():
        nn.init.normal_(parameter, std=0.3)
    child = sapa_mm.GuidedUNet(upsample_cfg=upsample_cfg, **options, **OPTIONS)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('upsamplers.') for key in missing)
    for model in (parent, child):
        model.eval()
    return parent, child


@pytest.mark.parametrize('conv_first', [False, True])
@pytest.mark.parametrize('upsample_cfg', [None, dict(type='Bilinear')], ids=['parent', 'Bilinear'])
def test_it_is_the_parent(upsample_cfg, conv_first):
    parent, child = pair(upsample_cfg, conv_first=conv_first)
    image = torch.randn(2, 3, 16, 24)
    outs = child(image)
    assert len(outs) == 4
    for ours, theirs in zip(outs, parent(image), strict=True):
        assert torch.equal(ours, theirs)


def test_the_parents_other_step():
    parent, child = pair(dict(type='mmseg.DeconvModule'), dict(type='mmseg.DeconvModule'))
    image = torch.randn(1, 3, 16, 16)
    assert torch.equal(child(image)[-1], parent(image)[-1]) and child.upsamplers is None


def test_guides_are_the_encoders_maps_at_any_size():
    """Two upsamplers, of unlike channels; the third step has no resize."""
    _, child = pair(SAPA)
    assert list(child.upsamplers) == ['0', '1']
    seen = []
    for key, upsampler in child.upsamplers.items():
        upsampler.register_forward_hook(
            lambda m, args, out, key=key: seen.append((key, args[1].shape[1], *out.shape[1:]))
        )
    outs = child(torch.randn(2, 3, 21, 19))
    assert seen == [('1', 16, 32, 10, 9), ('0', 8, 16, 21, 19)]
    assert [tuple(out.shape[1:]) for out in outs] == [(64, 5, 5), (32, 5, 5), (16, 10, 9), (8, 21, 19)]
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None for p in child.parameters())


def test_init_weights():
    _, child = pair(dict(SAPA, embed_dims=64))
    child.init_weights()
    assert 0.015 < child.upsamplers['0'].k.weight.std() < 0.025


def test_equal_channels_need_the_convolution_first():
    inner = dict(type='SAPA', similarity='inner')
    with pytest.raises(ValueError, match='the same number of channels, got 8 and 16'):
        pair(inner)
    pair(inner, conv_first=True)
