# SPDX-License-Identifier: Apache-2.0
"""SegNet: encoder, head, max-unpooling, and both in mmseg's EncoderDecoder."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmseg')
from mmengine.config import ConfigDict

from sapa_mm.backbones import SegNetEncoder
from sapa_mm.decode_heads import SegNetHead
from sapa_mm.decode_heads.segnet_head import max_unpool

SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)
CHANNELS = [4, 6, 8, 8]  # three levels before pooling, and the pooled one
VGG_CHANNELS = [64, 128, 256, 512, 512, 512]


def build(in_channels=CHANNELS, num_convs=(1, 2, 3), channels=5, **kwargs):
    torch.manual_seed(0)
    options = dict(num_classes=3, norm_cfg=dict(type='BN'), dropout_ratio=0.0, align_corners=False)
    in_index = list(range(len(in_channels)))
    return SegNetHead(
        num_convs=num_convs, in_channels=in_channels, in_index=in_index, channels=channels, **options, **kwargs
    )


def levels(height=11, width=13, channels=CHANNELS):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, c, -(-height // 2**i), -(-width // 2**i), generator=generator) for i, c in enumerate(channels)
    ]


def unpool_by_loops(x, pooled):
    out = torch.zeros_like(pooled)
    batch, channels, height, width = pooled.shape
    for n in range(batch):
        for c in range(channels):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    cell = [(y, z) for y in (2 * i, 2 * i + 1) for z in (2 * j, 2 * j + 1) if y < height and z < width]
                    y, z = max(cell, key=lambda place: pooled[n, c, place[0], place[1]].item())
                    out[n, c, y, z] = x[n, c, i, j]
    return out


@pytest.mark.parametrize('size', [(6, 8), (5, 8), (7, 5), (1, 3)], ids=str)
def test_max_unpool(size):
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(2, 3, *size, generator=generator)
    x = torch.randn(2, 3, -(-size[0] // 2), -(-size[1] // 2), generator=generator)
    assert torch.equal(max_unpool(x, pooled), unpool_by_loops(x, pooled))
    assert torch.equal(F.max_pool2d(max_unpool(x.abs(), pooled), 2, ceil_mode=True), x.abs())


def test_max_unpool_needs_the_pooled_size():
    with pytest.raises(ValueError, match=r'pooling \(1, 2, 5, 5\) gives \(1, 2, 3, 3\), but x has \(1, 2, 2, 2\)'):
        max_unpool(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 5, 5))


@pytest.mark.parametrize('guided', [False, True], ids=['unpooling', 'guided'])
def test_wiring(guided):
    """Stage i upsamples to level i, then convolves to the channels of level i - 1."""
    head, inputs = build(upsample_cfg=SAPA if guided else None).eval(), levels()
    with torch.no_grad():
        x = inputs[3]
        for i in (2, 1, 0):
            x = head.upsamplers[i](x, inputs[i]) if guided else max_unpool(x, inputs[i])
            assert x.shape == (2, CHANNELS[3] if i == 2 else CHANNELS[i], *inputs[i].shape[2:])
            x = head.stages[i](x)
        assert torch.equal(head(inputs), head.conv_seg(x))
    assert [len(stage) for stage in head.stages] == [1, 2, 3]
    assert head.conv_seg.kernel_size == (3, 3)
    assert guided == (head.upsamplers is not None and len({id(u) for u in head.upsamplers}) == 3)


def test_encoder():
    """What is pooled, then the last pooled map; sizes rounded up; torchvision's parameter names."""
    torch.manual_seed(0)
    encoder = SegNetEncoder()
    with torch.no_grad():
        outs = encoder(torch.randn(2, 3, 37, 65))
        assert [tuple(x.shape[1:]) for x in outs] == [
            (64, 37, 65), (128, 19, 33), (256, 10, 17), (512, 5, 9), (512, 3, 5), (512, 2, 3)
        ]  # fmt: skip
        assert torch.equal(F.max_pool2d(outs[4], 2, ceil_mode=True), outs[5])
        second = encoder.features[7:13](F.max_pool2d(outs[0], 2, ceil_mode=True))
        assert torch.equal(second, outs[1]) and (second >= 0).all()
    names = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    assert names['features.0.weight'] == (64, 3, 3, 3) and names['features.41.weight'] == (512,)
    assert sum(p.numel() for p in encoder.parameters()) == 14_723_136  # torchvision's vgg16_bn without its classifier


def test_encoder_options():
    encoder = SegNetEncoder(depth=11, base_channels=4)
    assert [x.shape[1] for x in encoder(torch.randn(2, 3, 33, 35))] == [4, 8, 16, 32, 32, 32]
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.features) == 8
    before = encoder.features[0].weight.clone()
    encoder.init_weights()
    assert not torch.equal(before, encoder.features[0].weight)
    with pytest.raises(ValueError, match=r'depth must be one of \(11, 13, 16, 19\), got 12'):
        SegNetEncoder(depth=12)


def test_pretrained_encoder(tmp_path):
    """The layout of torchvision's file, classifier and all."""
    source, target = SegNetEncoder(depth=11), SegNetEncoder(
        depth=11, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vgg.pth'))
    )  # fmt: skip
    torch.save({**source.state_dict(), 'classifier.0.weight': torch.zeros(3, 3)}, tmp_path / 'vgg.pth')
    target.init_weights()
    for name, x in source.state_dict().items():
        assert torch.equal(x, target.state_dict()[name]), name


@pytest.mark.parametrize('upsample_cfg', [None, SAPA], ids=['unpooling', 'sapa'])
def test_parameter_count(upsample_cfg):
    """The mirror of VGG-16: its convolutions in reverse, the first replaced by the classifier."""
    head = build(VGG_CHANNELS, (1, 2, 3, 3, 3), 64, upsample_cfg=upsample_cfg)
    widths = [(512, 512)] * 5 + [(512, 256)] + [(256, 256)] * 2 + [(256, 128), (128, 128), (128, 64), (64, 64)]
    expected = sum(9 * a * b + 2 * b for a, b in widths) + 9 * 64 * 3 + 3
    own = [p for name, p in head.named_parameters() if not name.startswith('upsamplers')]
    assert sum(p.numel() for p in own) == expected


@pytest.mark.parametrize('similarity', [None, 'inner', 'bilinear', 'gated', 'plain'])
@pytest.mark.parametrize('size', [(33, 47), (32, 64)], ids=str)
def test_model_trains(similarity, size):
    """In mmseg's EncoderDecoder, at odd sizes: every parameter gets a gradient, predictions have the image's size."""
    import mmseg.models  # noqa: F401
    from mmseg.registry import MODELS

    head = dict(
        type='sapa_mm.SegNetHead',
        in_channels=VGG_CHANNELS,
        in_index=list(range(6)),
        channels=64,
        num_convs=[1, 1, 1, 1, 1],
        num_classes=3,
        norm_cfg=dict(type='BN'),
        dropout_ratio=0.0,
        align_corners=False,
        upsample_cfg=similarity and dict(type='sapa_mm.SAPA', similarity=similarity),
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    torch.manual_seed(0)
    backbone = dict(type='sapa_mm.SegNetEncoder', depth=11)
    model = MODELS.build(
        ConfigDict(type='EncoderDecoder', backbone=backbone, decode_head=head, test_cfg=dict(mode='whole'))
    )
    model.init_weights()
    images = torch.randn(2, 3, *size)
    logits = model.train()(images, mode='tensor')
    assert logits.shape == (2, 3, *size)
    F.cross_entropy(logits, torch.randint(0, 3, (2, *size))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # in front of a batch normalisation a bias changes nothing
        if not (name.startswith('backbone') and name.endswith('bias')):
            assert parameter.grad.abs().max() > 0, name
    for name, x in model.named_parameters():
        if 'upsamplers' in name and name.endswith(('q.weight', 'qy.weight', 'qx.weight', 'k.weight')):
            assert 0.015 < x.std() < 0.025, name


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(num_convs=(1, 2)), ValueError, r'each of the 3 levels before pooling, got \(1, 2\)'),
        (dict(num_convs=(1, 0, 2)), ValueError, r'must have a positive number .* got \(1, 0, 2\)'),
        (dict(in_channels=[4, 6, 8, 9]), ValueError, 'as many channels after pooling as before, got 9, 8'),
        (dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarty='inner')), TypeError, "did you mean 'similarity'"),
        (dict(upsample_cfg=dict(similarity='inner')), TypeError, "upsample_cfg must be a dict with a 'type'"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_guided_head_takes_other_channels_after_pooling():
    """Only unpooling needs equal channels."""
    channels = [4, 6, 8, 12]
    head = build(channels, upsample_cfg=SAPA)
    assert head(levels(channels=channels)).shape == (2, 3, 11, 13)
