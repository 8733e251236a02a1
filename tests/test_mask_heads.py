# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

pytest.importorskip('mmdet.models')
from mmdet.models.roi_heads.mask_heads import FCNMaskHead as ParentMaskHead
from mmengine.registry import MODELS, DefaultScope

UNGUIDED = ['Nearest', 'Bilinear', 'Deconv', 'PixelShuffle', 'CARAFE', 'DySample']


def build(upsample_cfg=None, kind='sapa_mm.GuidedMaskHead'):
    torch.manual_seed(0)
    cfg = dict(type=kind, num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3,
               loss_mask=dict(type='CrossEntropyLoss', use_mask=True))  # fmt: skip
    if upsample_cfg is not None:
        cfg['upsample_cfg'] = upsample_cfg
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg)


@pytest.mark.parametrize('cfg', [None, dict(type='bilinear', scale_factor=2), dict(type=None)], ids=str)
def test_the_parents_ways_are_the_parent(cfg):
    ours, parent = build(cfg), build(cfg, 'FCNMaskHead')
    assert type(parent) is ParentMaskHead
    parent.load_state_dict(ours.state_dict())
    x = torch.rand(2, 8, 7, 7)
    assert torch.equal(ours(x), parent(x))


@pytest.mark.parametrize('batch', [0, 3])
@pytest.mark.parametrize('name', UNGUIDED)
def test_one_step(name, batch):
    head = build(dict(type=f'sapa_mm.{name}'))
    out = head(torch.rand(batch, 8, 7, 7))
    assert out.shape == (batch, 3, 14, 14)
    out.sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert batch == 0 or parameter.grad.any() or key.startswith('upsample.channel_compressor'), key


def test_scale_factor():
    assert build(dict(type='sapa_mm.CARAFE', scale_factor=4))(torch.rand(1, 8, 7, 7)).shape == (1, 3, 28, 28)


def test_init_weights_leaves_the_upsampler_alone():
    head = build(dict(type='sapa_mm.CARAFE'))
    head.init_weights()
    assert 0.0008 < head.upsample.content_encoder.weight.std() < 0.0012


def test_refuses_a_guided_upsampler():
    with pytest.raises(ValueError, match='a mask head has no guide, which sapa_mm.SAPA needs'):
        build(dict(type='sapa_mm.SAPA'))
