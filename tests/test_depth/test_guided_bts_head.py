# SPDX-License-Identifier: Apache-2.0
"""The depth decoder of BTS and its encoder: sizes, gradients, names, costs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmseg')

from mmengine import ConfigDict, DefaultScope
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from sapa_mm.depth import GuidedBTSHead, ResNetWithStem
from sapa_mm.depth.guided_bts_head import KITTI_FOCAL_LENGTH, local_planes
from sapa_mm.upsamplers import BaseUpsampler

CHANNELS = (32, 32, 64, 128, 256)
SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)
NEAREST = dict(type='sapa_mm.Nearest')


def make_head(seed=0, **options):
    torch.manual_seed(seed)
    head = GuidedBTSHead(**dict(dict(in_channels=CHANNELS, channels=128), **options))
    head.init_weights()
    return head


def levels(height, width, channels=CHANNELS, batch=1):
    """Maps of strides 2 to 32, rounded up, as a ResNet gives them."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(1, 6)]
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(channels, sizes)]


def samples(depths, **meta):
    return [
        SegDataSample(gt_depth_map=PixelData(data=depth), metainfo=dict(img_shape=tuple(depth.shape[1:]), **meta))
        for depth in depths
    ]


@pytest.mark.parametrize('upsample_cfg', [None, SAPA, dict(type='sapa_mm.IndexNet')], ids=['none', 'sapa', 'indexnet'])
@pytest.mark.parametrize('size', [(64, 96), (32, 32), (65, 97), (33, 1), (50, 83)], ids=str)
def test_any_size(size, upsample_cfg):
    """Five maps of the image's size, one more row or column where a side is odd; the prediction has the image's."""
    head = make_head(upsample_cfg=upsample_cfg).eval()
    inputs = levels(*size)
    with torch.no_grad():
        maps = head.decode(inputs)
        depth = head.predict(inputs, [dict(img_shape=size, ori_shape=size)])
    assert [tuple(x.shape) for x in maps] == [(1, 1, size[0] + size[0] % 2, size[1] + size[1] % 2)] * 5
    assert all(x.isfinite().all() for x in maps)
    assert 0 < maps[4].min() and maps[4].max() < 10
    assert torch.equal(depth, maps[4][:, :, : size[0], : size[1]])


def test_nearest_is_what_it_does_without_upsampler():
    head, other = make_head().eval(), make_head(upsample_cfg=NEAREST).eval()
    other.load_state_dict(head.state_dict())
    inputs = levels(50, 83)
    assert torch.equal(head(inputs), other(inputs))


def test_upsamplers_stand_at_the_four_guided_steps():
    head = make_head(in_channels=(64, 256, 512, 1024, 2048), channels=512, upsample_cfg=SAPA)
    places = [(u.in_channels, u.guide_channels) for u in head.upsamplers]
    assert places == [(128, 64), (128, 256), (512, 512), (2048, 1024)]


@pytest.mark.parametrize('upsample_cfg', [None, SAPA], ids=['none', 'sapa'])
def test_every_parameter_gets_a_gradient(upsample_cfg):
    head = make_head(upsample_cfg=upsample_cfg)
    inputs = [x.requires_grad_() for x in levels(65, 97, batch=2)]
    generator = torch.Generator().manual_seed(2)
    truth = 0.5 + 9 * torch.rand(2, 1, 65, 97, generator=generator)
    losses = head.loss(inputs, samples(truth), None)
    assert list(losses) == ['loss_silog'] and losses['loss_silog'].isfinite()
    losses['loss_silog'].backward()
    still = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert all(x.grad.any() for x in inputs)


def test_losses_are_those_of_the_depth():
    head = make_head(loss_decode=[dict(type='sapa_mm.SILogLoss'), dict(type='sapa_mm.SILogLoss', loss_weight=1.0)])
    inputs, truth = levels(64, 64, batch=2), torch.full((2, 1, 64, 64), 3.0)
    head.eval()
    losses = head.loss(inputs, samples(truth))
    loss, other = head.loss_decode
    depth = head(inputs)
    torch.testing.assert_close(losses['loss_silog'], loss(depth, truth) + other(depth, truth))


def test_focal_length_scales_the_depth_alone():
    head = make_head(focal_length=KITTI_FOCAL_LENGTH, max_depth=80.0).eval()
    inputs = levels(64, 64, batch=2)
    focal = torch.tensor([721.5377, 707.0912])
    with torch.no_grad():
        scaled, plain = head.decode(inputs, focal), head.decode(inputs, torch.full((2,), KITTI_FOCAL_LENGTH))
        metas = [dict(img_shape=(64, 64), focal=float(f)) for f in focal]
        torch.testing.assert_close(head.predict(inputs, metas), scaled[4])
    for x, y in zip(scaled[:4], plain):
        assert torch.equal(x, y)
    torch.testing.assert_close(scaled[4], plain[4] * (focal / KITTI_FOCAL_LENGTH).view(2, 1, 1, 1))
    with pytest.raises(ValueError, match='needs the focal length of each image'):
        head(inputs)
    with pytest.raises(ValueError, match="add 'focal' to the meta_keys"):
        head.predict(inputs, [dict(img_shape=(64, 64))] * 2)


def test_planes_by_hand():
    """A cell at a time, a pixel at a time, from the equation of the plane."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64)
    ratio, size = 4, (7, 11)
    out = local_planes(raw, ratio, size)
    assert out.shape == (2, 1, *size)
    t = raw.sigmoid()
    for n, y, x in [(0, 0, 0), (0, 5, 10), (1, 6, 3), (1, 3, 4)]:
        t0, t1, t2 = t[n, :, y // ratio, x // ratio].tolist()
        theta, phi = t0 * math.pi / 3, 2 * math.pi * t1
        normal = (math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta))
        u, v = ((x % ratio - 1.5) / 4, (y % ratio - 1.5) / 4)
        assert float(out[n, 0, y, x]) == pytest.approx(t2 / (normal[0] * u + normal[1] * v + normal[2]), rel=1e-12)


@pytest.mark.parametrize(
    ('upsample_cfg', 'added'),
    [
        (None, 0),
        (dict(type='sapa_mm.SAPA', similarity='bilinear', embed_dims=64), 0.31e6),
        (dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=64), 0.49e6),
        (dict(type='sapa_mm.SAPA', similarity='bilinear'), 0.16e6),
        (dict(type='sapa_mm.SAPA', similarity='gated'), 0.25e6),
        (dict(type='sapa_mm.CARAFE'), 0.41e6),
    ],
    ids=['nearest', 'sapa-b-64', 'sapa-g-64', 'sapa-b', 'sapa-g', 'carafe'],
)
def test_published_parameter_column(upsample_cfg, added):
    """The published column, to its two decimals; 49.53 M counts the classifier of the ImageNet ResNet, never run."""
    head = GuidedBTSHead(upsample_cfg=upsample_cfg)
    decoder = sum(p.numel() for p in GuidedBTSHead().parameters())
    assert decoder == 23_973_936
    assert round((sum(p.numel() for p in head.parameters()) - decoder) / 1e6, 2) == round(added / 1e6, 2)
    if upsample_cfg is None:
        encoder, classifier = sum(p.numel() for p in ResNetWithStem(50).parameters()), 2048 * 1000 + 1000
        assert encoder + classifier == 25_557_032
        assert round((encoder + classifier + decoder) / 1e6, 2) == 49.53


def test_names_and_shapes_of_the_published_decoder():
    """A few of each kind; all of them are checked with the golden vectors, which the repository is too small for."""
    shapes = {name: tuple(x.shape) for name, x in GuidedBTSHead().state_dict().items()}
    assert {
        'upconv5.conv.weight': (512, 2048, 3, 3),
        'bn5.running_var': (512,),
        'conv5.0.weight': (512, 1536, 3, 3),
        'bn4_2.weight': (256,),
        'daspp_3.atrous_conv.aconv_sequence.1.weight': (256, 256, 1, 1),
        'daspp_24.atrous_conv.first_bn.bias': (1280,),
        'daspp_24.atrous_conv.aconv_sequence.1.weight': (256, 1280, 1, 1),
        'daspp_24.atrous_conv.aconv_sequence.4.weight': (128, 256, 3, 3),
        'daspp_conv.0.weight': (128, 896, 3, 3),
        'reduc8x8.reduc.inter_128_128.0.weight': (128, 128, 1, 1),
        'reduc8x8.reduc.plane_params.weight': (3, 8, 1, 1),
        'conv3.0.weight': (128, 385, 3, 3),
        'conv2.0.weight': (64, 129, 3, 3),
        'reduc1x1.reduc.final.0.weight': (1, 8, 1, 1),
        'conv1.0.weight': (32, 36, 3, 3),
        'get_depth.0.weight': (1, 32, 3, 3),
    }.items() <= shapes.items()
    assert not any(name.endswith('conv.bias') for name in shapes)
    assert 'daspp_3.atrous_conv.first_bn.weight' not in shapes


def test_norms():
    head = GuidedBTSHead()
    assert (head.bn5.momentum, head.bn5.eps) == (0.01, 1.1e-5)
    assert head.daspp_6.atrous_conv.first_bn.eps == 1.1e-5
    assert head.daspp_6.atrous_conv.aconv_sequence[2].eps == 1e-5
    groups = make_head(norm_cfg=dict(type='GN', num_groups=8), in_channels=(8, 8, 16, 32, 64))
    kinds = {type(m) for m in groups.modules() if 'Norm' in type(m).__name__}
    assert kinds == {nn.GroupNorm}
    assert groups(levels(32, 32, (8, 8, 16, 32, 64))).shape == (1, 1, 32, 32)


def test_initialisation():
    """Xavier uniform for the decoder's convolutions; upsamplers as published."""
    head = make_head(channels=512, upsample_cfg=SAPA)
    weight = head.conv5[0].weight
    bound = math.sqrt(6 / (9 * (weight.shape[0] + weight.shape[1])))
    assert 0.99 * bound < weight.abs().max().item() <= bound
    assert head.upsamplers[3].k.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(in_channels=(64, 256)), r'in_channels must be those of strides 2, 4, 8, 16 and 32, got \(64, 256\)'),
        (dict(channels=100), 'channels must be a positive multiple of 32, got 100'),
        (dict(channels=0), 'channels must be a positive multiple of 32, got 0'),
        (dict(max_depth=0), 'max_depth must be positive, got 0'),
        (dict(focal_length=-1.0), 'focal_length must be positive, got -1.0'),
        (dict(upsample_cfg=dict(type='sapa_mm.SAPA', similarity='inner')), 'same number of channels'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_head(**options)


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match='needs 5 maps, of strides 2, 4, 8, 16 and 32, got 4'):
        make_head()(levels(64, 64)[1:])


@pytest.mark.parametrize('depth', [18, 50])
def test_stem_comes_first(depth):
    torch.manual_seed(0)
    net = ResNetWithStem(depth).eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        stem, *stages = net(image)
        parent = super(ResNetWithStem, net).forward(image)
    assert stem.shape == (1, 64, 33, 49) and stem.min() == 0
    torch.testing.assert_close(stem, F.relu(net.bn1(net.conv1(image))))
    assert len(stages) == len(parent) == 4 and all(torch.equal(x, y) for x, y in zip(stages, parent))


def test_deep_stem():
    net = ResNetWithStem(18, deep_stem=True, out_indices=(3,), freeze_published=True).eval()
    assert [tuple(x.shape) for x in net(torch.randn(1, 3, 32, 32))] == [(1, 64, 16, 16), (1, 512, 1, 1)]
    assert not any(p.requires_grad for p in net.stem.parameters())


def test_frozen_as_published():
    """The first convolution and the norms, but neither those of shortcuts nor any running statistics."""
    net = ResNetWithStem(50, freeze_published=True)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    norms = {f'layer{s}.{b}.bn{n}' for s, count in enumerate((3, 4, 6, 3), 1) for b in range(count) for n in (1, 2, 3)}
    expected = {f'{norm}.{kind}' for norm in {'bn1', *norms} for kind in ('weight', 'bias')} | {'conv1.weight'}
    assert frozen == expected
    before = net.layer1[0].bn1.running_mean.clone()
    net.train()(torch.randn(2, 3, 64, 64))
    assert not torch.equal(net.layer1[0].bn1.running_mean, before)
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == expected
    assert all(p.requires_grad for p in ResNetWithStem(18).train().parameters())


def estimator(size=None, **head):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(
            ConfigDict(
                type='DepthEstimator',
                data_preprocessor=dict(
                    type='SegDataPreProcessor',
                    mean=[127.0] * 3,
                    std=[60.0] * 3,
                    bgr_to_rgb=True,
                    seg_pad_val=0,
                    size=size,
                ),
                backbone=dict(type='sapa_mm.ResNetWithStem', depth=18),
                decode_head=dict(
                    type='sapa_mm.GuidedBTSHead',
                    in_channels=(64, 64, 128, 256, 512),
                    channels=128,
                    upsample_cfg=SAPA,
                    **head,
                ),
                test_cfg=dict(mode='whole'),
            )
        )


def test_in_the_estimator():
    """Trains and predicts; what the preprocessor pads is unknown depth, and is cut off the prediction."""
    torch.manual_seed(0)
    model = estimator(size=(96, 128))
    assert sum(isinstance(m, BaseUpsampler) for m in model.modules()) == 4
    images = [torch.randint(0, 256, (3, 80, 121), dtype=torch.uint8) for _ in range(2)]
    truth = torch.full((2, 1, 80, 121), 2.0)
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples(truth, ori_shape=(80, 121))), True)
    assert data['inputs'].shape == (2, 3, 96, 128)
    padded = data['data_samples'][0].gt_depth_map.data
    assert padded.shape == (1, 96, 128) and padded.sum() == 2 * 80 * 121
    losses = model(**data, mode='loss')
    assert list(losses) == ['decode.loss_silog'] and losses['decode.loss_silog'] > 0

    model = estimator().eval()
    with torch.no_grad():
        result = model.test_step(dict(inputs=images[:1], data_samples=samples(truth[:1], ori_shape=(80, 121))))[0]
    assert result.pred_depth_map.data.shape == (1, 80, 121)
    assert 0 < result.pred_depth_map.data.min() and result.pred_depth_map.data.max() < 10


def test_half_precision():
    """Planes are computed in float32: in bfloat16 the maps are those of float32 to a few of its steps."""
    head = make_head(upsample_cfg=SAPA).eval()
    inputs = levels(64, 64)
    with torch.no_grad():
        expected = head(inputs)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            depth = head(inputs)
    assert depth.isfinite().all()
    assert (depth.float() - expected).abs().mean() < 0.1  # of 10; 0.02 measured
