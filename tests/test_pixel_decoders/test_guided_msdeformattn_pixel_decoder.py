# SPDX-License-Identifier: Apache-2.0
"""GuidedMSDeformAttnPixelDecoder against mmdet's MSDeformAttnPixelDecoder."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmdet.models')
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmengine.config import ConfigDict

from sapa_mm.pixel_decoders import GuidedMSDeformAttnPixelDecoder

SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)
CHANNELS = [8, 12, 16, 20]
# name: channels, levels of the encoder, outputs. One step below the encoder as published; with more the parent
# numbers its convolutions so that only equal channels fit, and with fewer encoder levels than outputs a decoded
# level is among the outputs.
SHAPES = {
    'one_step': (CHANNELS, 3, 3),
    'two_steps': ([12] * 4, 2, 3),
    'three_steps': ([12] * 4, 1, 1),
    'no_step': (CHANNELS, 4, 3),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


def build(kind=GuidedMSDeformAttnPixelDecoder, shape=SHAPES['one_step'], seed=0, **kwargs):
    channels, encoder_levels, num_outs = shape
    torch.manual_seed(seed)
    layer = dict(
        self_attn_cfg=dict(embed_dims=16, num_heads=2, num_levels=encoder_levels, num_points=2, batch_first=True),
        ffn_cfg=dict(embed_dims=16, feedforward_channels=24, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type='ReLU')),
    )
    decoder = kind(
        in_channels=channels,
        strides=[4, 8, 16, 32],
        feat_channels=16,
        out_channels=10,
        num_outs=num_outs,
        norm_cfg=dict(type='GN', num_groups=4),
        encoder=ConfigDict(num_layers=2, layer_cfg=layer),
        positional_encoding=dict(num_feats=8, normalize=True),
        **kwargs,
    )
    torch.manual_seed(seed)
    for parameter in decoder.parameters():  # whatever the parent initialises with: the weights of its attention are 0
        nn.init.normal_(parameter, std=0.2)
    return decoder.eval()


def levels(height=33, width=47, channels=CHANNELS):
    """Sizes halved and rounded up: 33x47, 17x24, 9x12, 5x6."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, c, -(-height // 2**i), -(-width // 2**i), generator=generator) for i, c in enumerate(channels)
    ]


class Bilinear(nn.Module):
    """The parent's step in the shape of an upsampler."""

    def forward(self, feature, guide):
        return F.interpolate(feature, size=guide.shape[2:], mode='bilinear', align_corners=False)

    def fuse(self, feature, guide):
        return guide + self(feature, guide)


def assert_equal(actual, expected):
    (mask, scales), (expected_mask, expected_scales) = actual, expected
    assert torch.equal(mask, expected_mask) and len(scales) == len(expected_scales)
    for ours, theirs in zip(scales, expected_scales):
        assert torch.equal(ours, theirs)


def test_without_upsampler_is_the_parent(shape):
    parent, child = build(MSDeformAttnPixelDecoder, shape), build(shape=shape, seed=1)
    child.load_state_dict(parent.state_dict(), strict=True)
    inputs = levels(channels=shape[0])
    assert_equal(child(inputs), parent(inputs))


@pytest.mark.parametrize('size', [(33, 47), (64, 32), (37, 25), (5, 3)], ids=str)
def test_with_bilinear_stubs_is_the_parent(shape, size):
    """The forward that calls the upsamplers, which has the parent's encoder part again, differs in nothing else."""
    parent, child = build(MSDeformAttnPixelDecoder, shape), build(shape=shape, seed=1, upsample_cfg=SAPA)
    child.upsamplers = nn.ModuleList(Bilinear() for _ in child.upsamplers)
    child.load_state_dict(parent.state_dict(), strict=True)
    inputs = levels(*size, channels=shape[0])
    assert_equal(child(inputs), parent(inputs))


def test_step_from_stride_8_to_4():
    """The feature is the encoder's finest map, the guide the lateral of the finest level."""
    decoder, inputs = build(upsample_cfg=SAPA), levels()
    with torch.no_grad():
        mask, scales = decoder(inputs)
        lateral = decoder.lateral_convs[0](inputs[0])
        out = decoder.output_convs[0](lateral + decoder.upsamplers[0](scales[2], lateral))
        assert torch.equal(mask, decoder.mask_feature(out))
    assert len(decoder.upsamplers) == 1
    assert [tuple(x.shape) for x in scales] == [(2, 16, 5, 6), (2, 16, 9, 12), (2, 16, 17, 24)]
    assert mask.shape == (2, 10, 33, 47)


def test_parent_checkpoint_loads(shape):
    parent, child = build(MSDeformAttnPixelDecoder, shape), build(shape=shape, seed=1, upsample_cfg=SAPA)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {name for name in child.state_dict() if name.startswith('upsamplers.')}
    assert len({name.split('.')[1] for name in missing}) == len(shape[0]) - shape[1]


def test_published_layout_of_the_upsampler_loads():
    source, target = build(upsample_cfg=SAPA), build(seed=1, upsample_cfg=SAPA)
    log = {'.qy.': '.q.proj_y.', '.qx.': '.q.proj_x.', '.gate.': '.q.gate.', '.k.': '.k.proj.'}
    published = {}
    for name, x in source.state_dict().items():
        if name.startswith('upsamplers.'):
            for old, new in log.items():
                name = name.replace(old, new)
            x = x.flatten(1) if x.dim() == 4 else x
        published[name] = x
    assert published['upsamplers.0.q.proj_x.weight'].dim() == 2
    target.load_state_dict(published, strict=True)
    assert_equal(target(levels()), source(levels()))


@pytest.mark.parametrize('similarity', ['inner', 'bilinear', 'gated', 'plain'])
def test_every_parameter_gets_a_gradient(similarity):
    decoder = build(upsample_cfg=dict(type='sapa_mm.SAPA', similarity=similarity)).train()
    mask, scales = decoder(levels())
    (mask.square().mean() + sum(x.pow(3).mean() for x in scales)).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_init_weights():
    """The parent's rules for its own layers, the published ones for the upsampler."""
    parent, child = build(MSDeformAttnPixelDecoder), build(upsample_cfg=dict(SAPA, embed_dims=64))
    for decoder in (parent, child):
        for parameter in decoder.parameters():
            nn.init.constant_(parameter, 1.5)
        torch.manual_seed(3)
        decoder.init_weights()
    theirs, ours = parent.state_dict(), child.state_dict()
    assert theirs['lateral_convs.0.conv.weight'].mean() < 0.5
    assert all(torch.equal(x, ours[name]) for name, x in theirs.items())
    for name in ('qy', 'qx', 'k'):
        assert 0.017 < ours[f'upsamplers.0.{name}.weight'].std() < 0.023, name
        assert not ours[f'upsamplers.0.{name}.bias'].any(), name
    assert (ours['upsamplers.0.norm_x.weight'] == 1).all()


@pytest.mark.parametrize('upsample_cfg', [None, SAPA], ids=['interpolation', 'SAPA'])
def test_float32_inside_autocast(upsample_cfg):
    """As published: what a backbone in bfloat16 gives is decoded in float32, bit for bit."""
    decoder = build(upsample_cfg=upsample_cfg)
    inputs = [x.bfloat16() for x in levels()]
    expected = decoder([x.float() for x in inputs])
    with torch.autocast('cpu', torch.bfloat16):
        result = decoder(inputs)
        assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16  # on again
    assert result[0].dtype == torch.float32
    assert_equal(result, expected)


@pytest.mark.parametrize(
    'upsample_cfg, error, message',
    [
        (dict(type='sapa_mm.SAPA', similarty='inner'), TypeError, "did you mean 'similarity'"),
        (dict(similarity='inner'), TypeError, "upsample_cfg must be a dict with a 'type'"),
        (dict(type='sapa_mm.SAPA', in_channels=8), ValueError, 'in_channels must be 16 here, got 8'),
    ],
    ids=str,
)
def test_bad_upsample_cfg(upsample_cfg, error, message):
    with pytest.raises(error, match=message):
        build(upsample_cfg=upsample_cfg)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_builds_in_the_scope_of_both_toolboxes(scope):
    models = pytest.importorskip(f'{scope}.registry').MODELS
    assert models.get('sapa_mm.GuidedMSDeformAttnPixelDecoder') is GuidedMSDeformAttnPixelDecoder
