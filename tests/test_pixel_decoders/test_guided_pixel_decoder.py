# SPDX-License-Identifier: Apache-2.0
"""GuidedPixelDecoder and GuidedTransformerEncoderPixelDecoder against mmdet's decoders, alone and in their heads."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmdet.models')
from mmdet.models.layers import PixelDecoder, TransformerEncoderPixelDecoder
from mmengine.config import ConfigDict

from sapa_mm.pixel_decoders import GuidedPixelDecoder, GuidedTransformerEncoderPixelDecoder

SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)
CHANNELS = [8, 12, 16, 20]
ATTENTION = dict(embed_dims=16, num_heads=2, batch_first=True)
FFN = dict(embed_dims=16, feedforward_channels=24, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type='ReLU'))
ENCODER = dict(
    encoder=ConfigDict(num_layers=2, layer_cfg=dict(self_attn_cfg=ATTENTION, ffn_cfg=FFN)),
    positional_encoding=dict(num_feats=8, normalize=True),
)
# parent, child, what the parent needs beyond channels
KINDS = {
    'plain': (PixelDecoder, GuidedPixelDecoder, {}),
    'transformer': (TransformerEncoderPixelDecoder, GuidedTransformerEncoderPixelDecoder, ENCODER),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kinds(request):
    return request.param


def build(kind, options, channels=CHANNELS, **kwargs):
    torch.manual_seed(0)
    decoder = kind(
        in_channels=channels,
        feat_channels=16,
        out_channels=10,
        norm_cfg=dict(type='GN', num_groups=4),
        **options,
        **kwargs,
    )
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return decoder.eval()


def levels(height=33, width=47, channels=CHANNELS):
    """Sizes halved and rounded up: 33x47, 17x24, 9x12, 5x6."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, c, -(-height // 2**i), -(-width // 2**i), generator=generator) for i, c in enumerate(channels)
    ]


# stride 4 of the finest level; the second image is padded by half
METAS = [
    dict(batch_input_shape=(132, 188), img_shape=(132, 188)),
    dict(batch_input_shape=(132, 188), img_shape=(60, 90)),
]


class Nearest(nn.Module):
    """The parent's step in the shape of an upsampler."""

    def forward(self, feature, guide):
        return F.interpolate(feature, size=guide.shape[2:], mode='nearest')

    def fuse(self, feature, guide):
        return guide + self(feature, guide)


def assert_equal(actual, expected):
    assert len(actual) == len(expected) == 2
    for ours, theirs in zip(actual, expected):
        assert torch.equal(ours, theirs)


def test_without_upsampler_is_the_parent(kinds):
    parent, child, options = kinds
    parent, child = build(parent, options), build(child, options)
    nn.init.normal_(child.mask_feature.weight)
    child.load_state_dict(parent.state_dict(), strict=True)
    assert_equal(child(levels(), METAS), parent(levels(), METAS))


@pytest.mark.parametrize('size', [(33, 47), (64, 32), (37, 25), (5, 3)], ids=str)
@pytest.mark.parametrize('count', [2, 4], ids=lambda count: f'{count}_levels')
def test_with_nearest_stubs_is_the_parent(kinds, size, count):
    """The forward that calls the upsamplers, which has the parent's encoder part again, differs in nothing else."""
    parent, child, options = kinds
    channels = CHANNELS[-count:]
    parent, child = build(parent, options, channels), build(child, options, channels, upsample_cfg=SAPA)
    assert len(child.upsamplers) == count - 1
    child.upsamplers = nn.ModuleList(Nearest() for _ in child.upsamplers)
    nn.init.normal_(child.mask_feature.weight)
    child.load_state_dict(parent.state_dict(), strict=True)
    inputs = levels(*size, channels=channels)
    assert_equal(child(inputs, METAS), parent(inputs, METAS))


def test_steps_from_stride_32_to_4(kinds):
    """Three steps, coarsest first; the feature is what the level before gave, the guide the lateral itself."""
    _, child, options = kinds
    decoder, inputs, seen = build(child, options, upsample_cfg=SAPA), levels(), {}
    for i, conv in enumerate(decoder.output_convs):
        conv.register_forward_hook(lambda _, args, out, i=i: seen.update({i: (args[0], out)}))
    with torch.no_grad():
        mask, memory = decoder(inputs, METAS)
        y = decoder.last_feat_conv(memory) if decoder.last_feat_conv else decoder.encoder_out_proj(memory)
        for i in (2, 1, 0):
            lateral = decoder.lateral_convs[i](inputs[i])
            assert torch.equal(seen[i][0], lateral + decoder.upsamplers[i](y, lateral))
            y = seen[i][1]
        assert torch.equal(mask, decoder.mask_feature(y))
    assert len(decoder.upsamplers) == 3 and mask.shape == (2, 10, 33, 47) and memory.shape[2:] == (5, 6)


def test_parent_checkpoint_loads(kinds):
    parent, child, options = kinds
    parent, child = build(parent, options), build(child, options, upsample_cfg=SAPA)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {name for name in child.state_dict() if name.startswith('upsamplers.')} != set()


@pytest.mark.parametrize('similarity', ['inner', 'bilinear', 'gated', 'plain'])
def test_every_parameter_gets_a_gradient(kinds, similarity):
    _, child, options = kinds
    decoder = build(child, options, upsample_cfg=dict(type='sapa_mm.SAPA', similarity=similarity)).train()
    mask, memory = decoder(levels(), METAS)
    (mask.square().mean() + memory.square().mean()).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_init_weights(kinds):
    """The published rules: one uniform distribution for the path, whose last pair and first step the parent forgets."""
    parent, child, options = kinds
    parent, child = build(parent, options), build(child, options, upsample_cfg=dict(SAPA, embed_dims=64))
    for decoder in (parent, child):
        for parameter in decoder.parameters():
            nn.init.constant_(parameter, 1.5)
        torch.manual_seed(3)
        decoder.init_weights()
    theirs, ours = parent.state_dict(), child.state_dict()
    path = [*child.lateral_convs, *child.output_convs]
    if child.last_feat_conv is not None:
        path.append(child.last_feat_conv)
    assert len(path) in (6, 7)
    for conv in path:
        weight = conv.conv.weight
        bound = (3 / weight[0].numel()) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound and abs(weight.mean()) < 0.25 * bound
    forgotten = {name for name, x in theirs.items() if not torch.equal(x, ours[name])}
    expected = {'lateral_convs.2.conv.weight', 'output_convs.2.conv.weight'}
    assert forgotten == expected | ({'last_feat_conv.conv.weight'} if child.last_feat_conv is not None else set())
    for name in ('qy', 'qx', 'k'):
        assert 0.017 < ours[f'upsamplers.2.{name}.weight'].std() < 0.023, name
        assert not ours[f'upsamplers.2.{name}.bias'].any(), name


@pytest.mark.parametrize('upsample_cfg', [None, SAPA], ids=['interpolation', 'SAPA'])
def test_float32_inside_autocast(kinds, upsample_cfg):
    """As published: what a backbone in bfloat16 gives is decoded in float32, bit for bit."""
    _, child, options = kinds
    decoder = build(child, options, upsample_cfg=upsample_cfg)
    inputs = [x.bfloat16() for x in levels()]
    expected = decoder([x.float() for x in inputs], METAS)
    with torch.autocast('cpu', torch.bfloat16):
        result = decoder(inputs, METAS)
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
def test_bad_upsample_cfg(kinds, upsample_cfg, error, message):
    with pytest.raises(error, match=message):
        build(kinds[1], kinds[2], upsample_cfg=upsample_cfg)


def head_cfg(scope, pixel_decoder, enforce=False):
    layer = dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FFN)
    classes = dict(num_classes=5) if scope == 'mmseg' else dict(num_things_classes=3, num_stuff_classes=2)
    return ConfigDict(
        type=f'{scope}.MaskFormerHead',
        in_channels=CHANNELS,
        feat_channels=16,
        out_channels=16,
        num_queries=5,
        pixel_decoder=dict(norm_cfg=dict(type='GN', num_groups=4), **pixel_decoder),
        enforce_decoder_input_project=enforce,
        positional_encoding=dict(num_feats=8, normalize=True),
        transformer_decoder=dict(return_intermediate=True, num_layers=2, layer_cfg=layer, init_cfg=None),
        loss_cls=dict(type='mmdet.CrossEntropyLoss', class_weight=[1.0] * 5 + [0.1]),
        loss_mask=dict(type='mmdet.FocalLoss'),
        loss_dice=dict(type='mmdet.DiceLoss'),
        **classes,
    )


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('enforce', [False, True], ids=['', 'enforced'])
def test_maskformer_head_treats_it_as_its_parent(scope, enforce):
    """The heads project the memory for `PixelDecoder` itself only: the children must pass for it, and only for it."""
    models = pytest.importorskip(f'{scope}.registry').MODELS
    pytest.importorskip(f'{scope}.models')
    from mmdet.structures import DetDataSample

    heads = []
    for cfg in (dict(type='mmdet.PixelDecoder'), dict(type='sapa_mm.GuidedPixelDecoder')):
        torch.manual_seed(0)
        heads.append(models.build(head_cfg(scope, cfg, enforce)).eval())
    parent, child = heads
    assert parent.decoder_input_proj.weight.shape == (16, 20, 1, 1)
    child.load_state_dict(parent.state_dict(), strict=True)
    samples = [DetDataSample(metainfo=meta) for meta in METAS]
    for ours, theirs in zip(child(levels(), samples), parent(levels(), samples)):
        assert torch.equal(ours, theirs)

    guided = models.build(head_cfg(scope, dict(type='sapa_mm.GuidedPixelDecoder', upsample_cfg=SAPA), enforce))
    missing, unexpected = guided.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected and all(name.startswith('pixel_decoder.upsamplers.') for name in missing)
    scores, masks = guided.eval()(levels(), samples)
    assert masks.shape == (2, 2, 5, 33, 47) and masks.isfinite().all() and scores.isfinite().all()


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_maskformer_head_with_transformer_encoder(scope):
    models = pytest.importorskip(f'{scope}.registry').MODELS
    pytest.importorskip(f'{scope}.models')
    from mmdet.structures import DetDataSample

    decoder = dict(type='sapa_mm.GuidedTransformerEncoderPixelDecoder', upsample_cfg=SAPA, **ENCODER)
    head = models.build(head_cfg(scope, decoder))
    assert isinstance(head.decoder_input_proj, nn.Identity)  # the memory has the transformer's channels already
    samples = [DetDataSample(metainfo=meta) for meta in METAS]
    scores, masks = head(levels(), samples)
    assert masks.shape == (2, 2, 5, 33, 47) and masks.isfinite().all() and scores.isfinite().all()


def test_equality_of_the_classes():
    assert GuidedPixelDecoder == PixelDecoder == GuidedPixelDecoder and GuidedPixelDecoder == GuidedPixelDecoder
    assert not GuidedPixelDecoder != PixelDecoder
    assert GuidedPixelDecoder not in {PixelDecoder: 1}  # no key of the other
    assert GuidedPixelDecoder != TransformerEncoderPixelDecoder != GuidedTransformerEncoderPixelDecoder
    assert issubclass(GuidedPixelDecoder, PixelDecoder) and not issubclass(PixelDecoder, GuidedPixelDecoder)
