# SPDX-License-Identifier: Apache-2.0
"""`sapa_mm.convert` on decoders written here, on the toolboxes' against the hand-written ones, and on smp's."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sapa_mm
from sapa_mm.upsamplers import UPSAMPLERS

SAPA = dict(type='SAPA', embed_dims=8)
CHANNELS = [8, 12, 16, 20]


class UNetDecoder(nn.Module):
    """Concatenates; the last step has no skip."""

    def __init__(self, mode='nearest'):
        super().__init__()
        self.mode = mode
        self.convs = nn.ModuleList(nn.Conv2d(a + b, a, 3, padding=1) for a, b in zip(CHANNELS[:3], CHANNELS[1:]))

    def forward(self, features):
        *skips, x = features
        for conv, skip in zip(reversed(self.convs), reversed(skips)):
            x = F.interpolate(x, size=skip.shape[2:], mode=self.mode)
            if skip is not None:
                x = torch.cat([x, skip], 1)
            x = conv(x).relu()
        height, width = x.shape[2:]
        return F.interpolate(x, size=(2 * height, 2 * width), mode='nearest')


class FPN(nn.Module):
    """Adds; the lateral is made after the interpolation, and one sum is in place."""

    def __init__(self, mode='nearest'):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, 16, 1) for channels in CHANNELS)
        self.upsample = nn.Upsample(scale_factor=2, mode=mode)
        self.drop = nn.Dropout2d(0.5)

    def forward(self, a, b, c, d):
        x = self.laterals[3](d)
        outs = [x]
        for i, skip in ((2, c), (1, b), (0, a)):
            x = self.upsample(x)
            lateral = self.laterals[i](skip)
            if i == 1:
                x += lateral
            else:
                x = lateral + x
            outs.append(self.drop(x))
        return tuple(outs)


class PSP(nn.Module):
    """A pooled map, which stays, and two branches that meet a fine one at once."""

    def __init__(self):
        super().__init__()
        self.fine, self.pooled = nn.Conv2d(8, 16, 1), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(12, 16, 1))
        self.branches = nn.ModuleList(nn.Conv2d(channels, 16, 1) for channels in (12, 16))

    def forward(self, a, b, c):
        fine = self.fine(a)
        maps = [F.interpolate(conv(x), size=fine.shape[-2:]) for conv, x in zip(self.branches, (b, c))]
        return torch.cat([*maps, fine, F.interpolate(self.pooled(b), size=fine.shape[2:])], 1)


def levels(height=32, width=48, channels=CHANNELS, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), generator=generator)
        for i, c in enumerate(channels)
    ]


def test_dry_run_prints_the_places_and_changes_nothing(capsys):
    decoder = UNetDecoder()
    before = copy.deepcopy(decoder.__dict__)
    places = sapa_mm.convert(decoder, SAPA, dry_run=True, example_inputs=(levels(),))
    assert decoder.__dict__.keys() == before.keys() and not hasattr(decoder, 'upsamplers')
    assert [(p.feature[1:], p.guide[1:], p.call) for p in places] == [
        ((20, 4, 6), (16, 8, 12), 'pair'),
        ((16, 8, 12), (12, 16, 24), 'pair'),
        ((12, 16, 24), (8, 32, 48), 'pair'),
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == 'UNetDecoder: 3 places' and len(printed) == 4
    assert 'test_conversion.py' in printed[1] and 'F.interpolate(x, size=skip.shape[2:]' in printed[1]


@pytest.mark.parametrize('mode', ['Nearest', 'Bilinear'])
@pytest.mark.parametrize('kind', [UNetDecoder, FPN])
def test_with_the_same_interpolation_it_is_the_model(kind, mode):
    """At other sizes and batches than the example's, with other containers, and with the model's state dict."""
    torch.manual_seed(0)
    decoder = kind(mode.lower()).eval()
    inputs = (levels(),) if kind is UNetDecoder else tuple(levels())
    converted = sapa_mm.convert(decoder, dict(type=mode), example_inputs=inputs)
    assert isinstance(converted, kind) and not converted.training
    assert converted.state_dict().keys() == decoder.state_dict().keys()
    converted.load_state_dict(decoder.state_dict(), strict=True)
    others = levels(64, 32, batch=1)
    others = (tuple(others),) if kind is UNetDecoder else tuple(others)
    torch.testing.assert_close(converted(*others), decoder(*others), rtol=0, atol=0)


@pytest.mark.parametrize('name', UPSAMPLERS)
def test_every_upsampler_trains(name):
    """In a sum, whose channels are equal: those of group norms, 32, do not fit here."""
    torch.manual_seed(0)
    model = FPN()
    model.laterals = nn.ModuleList(nn.Conv2d(channels, 32, 1) for channels in CHANNELS)
    converted = sapa_mm.convert(model, dict(type=name), example_inputs=levels())
    assert converted.training and len(converted.upsamplers) == 3
    sum(out.square().mean() for out in converted(*levels())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())
    copy.deepcopy(converted).eval()(*levels(48, 64))


def test_sums_are_fused_and_the_rest_is_not(monkeypatch):
    calls = []
    fuse = sapa_mm.SAPA.fuse
    monkeypatch.setattr(sapa_mm.SAPA, 'fuse', lambda self, x, y: calls.append(tuple(y.shape[2:])) or fuse(self, x, y))
    sapa_mm.convert(FPN().eval(), SAPA, example_inputs=levels())(*levels())
    assert calls == [(8, 12), (16, 24), (32, 48)]


def test_many_maps_at_once_and_pooled_ones():
    """The guide is the map that was not enlarged; only chosen places are converted."""
    decoder = PSP()
    places = sapa_mm.convert(decoder, SAPA, dry_run=True, example_inputs=levels()[:3])
    assert [(p.feature[2:], p.guide[2:], p.call) for p in places] == [
        ((16, 24), (32, 48), 'forward'),
        ((8, 12), (32, 48), 'forward'),
    ]
    converted = sapa_mm.convert(decoder, SAPA, example_inputs=levels()[:3], places=[1])
    inputs = levels()[:3]
    with torch.no_grad():
        expected = decoder(*inputs)
        expected[:, 16:32] = converted.upsamplers[0](decoder.branches[1](inputs[2]), decoder.fine(inputs[0]))
        torch.testing.assert_close(converted(*inputs), expected)


def test_init_weights_reaches_the_upsamplers():
    converted = sapa_mm.convert(FPN(), SAPA, example_inputs=levels())
    nn.init.ones_(converted.upsamplers[0].k.weight)
    converted.upsamplers.init_weights()
    assert converted.upsamplers[0].k.weight.std() < 0.03


class BranchesOnValues(nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            return x
        return -x


@pytest.mark.parametrize(
    'model, cfg, options, message',
    [
        (BranchesOnValues(), SAPA, {}, r'BranchesOnValues cannot be traced .* \(at test_conversion.py:\d+, `if x.mean'),
        (UNetDecoder(), SAPA, {}, r'UNetDecoder cannot be traced with example_inputs \[\(1, 3, 64, 64\)\]'),
        (FPN(), SAPA, {}, r'FPN does not take example_inputs \[\(1, 3, 64, 64\)\]: missing'),
        (nn.Conv2d(3, 3, 1), SAPA, {}, 'Conv2d enlarges no map that meets another'),
        (
            UNetDecoder(),
            dict(type='SAPA', similarity='inner'),
            dict(example_inputs=(levels(),)),
            'got 16 and 20, at .*F',
        ),
        (UNetDecoder(), SAPA, dict(example_inputs=(levels(),), places=[3]), r'numbers below 3, got \[3\]'),
    ],
    ids=['value', 'inputs', 'arguments', 'none', 'misfit', 'places'],
)
def test_errors_name_the_place(model, cfg, options, message):
    with pytest.raises(ValueError, match=message):
        sapa_mm.convert(model, cfg, **options)


def test_a_model_is_converted_once():
    converted = sapa_mm.convert(FPN(), SAPA, example_inputs=levels())
    with pytest.raises(ValueError, match='FPN has upsamplers already'):
        sapa_mm.convert(converted, SAPA, example_inputs=levels())


HEAD = dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3], channels=16, num_classes=3, align_corners=False)
ASPP = dict(in_channels=20, in_index=3, channels=16, num_classes=3, c1_in_channels=8, c1_channels=8, dilations=(1, 2))
UNET = dict(base_channels=8, num_stages=3, strides=(1, 1, 1), enc_num_convs=(1, 1, 1), dec_num_convs=(1, 1))
UNET.update(downsamples=(True, True), enc_dilations=(1, 1, 1), dec_dilations=(1, 1))
# module of the parent, parent, hand-written child, options, places or all, hand-written upsamplers in their order
PAIRS = {
    'FPN': ('mmdet.models.necks', 'GuidedFPN', dict(in_channels=CHANNELS, out_channels=16, num_outs=5), None, -1),
    'PAFPN': ('mmdet.models.necks', 'GuidedPAFPN', dict(in_channels=CHANNELS, out_channels=16, num_outs=5), None, -1),
    'YOLOXPAFPN': ('mmdet.models.necks', 'GuidedYOLOXPAFPN', dict(in_channels=CHANNELS, out_channels=16), None, 1),
    'CSPNeXtPAFPN': ('mmdet.models.necks', 'GuidedCSPNeXtPAFPN', dict(in_channels=CHANNELS, out_channels=16), None, 1),
    'UPerHead': ('mmseg.models.decode_heads', 'GuidedUPerHead', dict(HEAD, pool_scales=(1, 2)), [0, 1, 2], -1),
    'DepthwiseSeparableASPPHead': (
        *('mmseg.models.decode_heads', 'GuidedDepthwiseSeparableASPPHead', dict(ASPP, align_corners=False), None, 1),
    ),
    'UNet': ('mmseg.models.backbones', 'GuidedUNet', UNET, None, -1),
}


@pytest.mark.parametrize('parent', PAIRS)
def test_toolbox_modules_become_the_hand_written_ones(parent):
    """The same numbers from the same weights, and every parameter under its name."""
    module, child, options, places, order = PAIRS[parent]
    pytest.importorskip(module.partition('.')[0] + '.models')
    torch.manual_seed(0)
    extra = dict(upsample_cfg=dict(type='mmseg.InterpConv')) if parent == 'UNet' else {}  # its default lacks the scope
    original = getattr(import_module(module), parent)(**options, **extra)
    ours = getattr(sapa_mm, child)(upsample_cfg=SAPA, **options)
    ours.eval()  # of mmseg's UNet it returns None
    inputs = torch.rand(2, 3, 32, 48) if parent == 'UNet' else levels()
    original.eval()
    converted = sapa_mm.convert(original, SAPA, example_inputs=(inputs,), places=places)
    by_hand = list(ours.upsamplers.values() if parent == 'UNet' else ours.upsamplers)[::order]
    for upsampler, expected in zip(converted.upsamplers, by_hand, strict=True):
        nn.init.normal_(expected.k.weight, std=0.5)
        upsampler.load_state_dict(expected.state_dict())
    assert not ours.load_state_dict(original.state_dict(), strict=False).unexpected_keys
    assert original.state_dict().keys() == {k for k in converted.state_dict() if not k.startswith('upsamplers.')}
    with torch.no_grad():
        torch.testing.assert_close(converted(inputs), ours(inputs), rtol=0, atol=1e-6)


C = [32, 64, 128, 256]
BN = dict(norm_cfg=dict(type='BN'))
BRANCHES = [dict(num_modules=1, num_branches=i, num_blocks=(1,) * i, num_channels=tuple(C[:i])) for i in range(1, 5)]
STDC = dict(
    type='mmseg.STDCNet', stdc_type='STDCNet1', in_channels=3, channels=(8, 16, 32, 64, 128), bottleneck_type='cat',
    num_convs=4, act_cfg=dict(type='ReLU'), with_final_conv=False, **BN,
)  # fmt: skip
IMAGE = (1, 3, 128, 128)
PYRAMID = [(1, c, 64 >> i, 96 >> i) for i, c in enumerate(C)]
REAL = dict(num_classes=3, align_corners=False)
# toolbox and class, options, shapes of the input, the parent's own interpolation, places, calls
OTHERS = {
    'FPN_CARAFE': ('mmdet.necks', dict(in_channels=C, out_channels=8, num_outs=5, upsample_cfg=dict(type='nearest')),
                   PYRAMID, 'Nearest', 4),
    'NASFPN': ('mmdet.necks', dict(in_channels=C, out_channels=8, num_outs=5, stack_times=1), PYRAMID, 'Nearest', 3),
    'BFP': ('mmdet.necks', dict(in_channels=8, num_levels=4, refine_level=1), [(1, 8, *x[2:]) for x in PYRAMID],
            'Nearest', 3),
    'HRFPN': ('mmdet.necks', dict(in_channels=C, out_channels=8), PYRAMID, 'Bilinear', 3),
    'DDRNet': ('mmseg.backbones', dict(channels=8, ppm_channels=16, align_corners=False, **BN), IMAGE, 'Bilinear', 6),
    'PIDNet': ('mmseg.backbones', dict(channels=8, ppm_channels=16, align_corners=False, **BN), IMAGE, 'Bilinear', 7),
    'HRNet': ('mmseg.backbones', dict(
        extra={f'stage{i + 1}': dict(x, block='BASIC' if i else 'BOTTLENECK') for i, x in enumerate(BRANCHES)}, **BN,
    ), IMAGE, 'Bilinear', 10),
    'BiSeNetV1': ('mmseg.backbones', dict(backbone_cfg=dict(
        type='mmseg.ResNet', depth=18, dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2), **BN), **BN,
    ), IMAGE, 'Nearest', 2),
    'STDCContextPathNet': ('mmseg.backbones', dict(
        backbone_cfg=STDC, last_in_channels=(128, 64), out_channels=16,
        ffm_cfg=dict(in_channels=48, out_channels=32, scale_factor=4),
    ), IMAGE, 'Nearest', 2),
    'ICNeck': ('mmseg.necks', dict(in_channels=(8, 16, 16), out_channels=8, align_corners=False, **BN),
               [(1, 8, 32, 32), (1, 16, 16, 16), (1, 16, 8, 8)], 'Bilinear', 2),
    'DPTHead': ('mmseg.decode_heads', dict(
        in_channels=(8,) * 4, channels=16, embed_dims=8, post_process_channels=[8] * 4, num_classes=3,
        input_transform='multiple_select', in_index=(0, 1, 2, 3), **BN,
    ), [[(1, 8, 8, 12), (1, 8)]] * 4, dict(type='Bilinear', align_corners=True), 3),
}  # fmt: skip


def random(shapes):
    return torch.randn(shapes) if isinstance(shapes, tuple) else [random(x) for x in shapes]


@pytest.mark.parametrize('name', OTHERS)
def test_other_modules_of_the_toolboxes(name):
    """docs/models.md names them; with their own interpolation they stay as they are, and with SAPA they train."""
    package, options, shapes, interpolation, places = OTHERS[name]
    toolbox, module = package.split('.')
    pytest.importorskip(f'{toolbox}.models')
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(toolbox):
        model = getattr(import_module(f'{toolbox}.models.{module}'), name)(**options)
    model.eval()
    inputs = random(shapes)
    twin = dict(type=interpolation) if isinstance(interpolation, str) else interpolation
    twin = sapa_mm.convert(model, twin, example_inputs=(inputs,))
    assert len(twin.upsamplers) == places
    with torch.no_grad():
        torch.testing.assert_close(twin(copy.deepcopy(inputs)), model(copy.deepcopy(inputs)), rtol=0, atol=1e-5)
    converted = sapa_mm.convert(model, SAPA, example_inputs=(inputs,))
    outs = converted(inputs)
    outs = [outs] if torch.is_tensor(outs) else outs
    sum(out.square().mean() for out in outs).backward()
    # a finer output of a backbone may not depend on its last steps
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.upsamplers.parameters())


# smp's classes that are converted whole or by their decoder, and how many places they have
SMP = dict(Unet=4, UnetPlusPlus=10, FPN=6, DeepLabV3Plus=1, UPerNet=6, Segformer=3)


@pytest.mark.parametrize('kind', SMP)
def test_segmentation_models_pytorch(kind):
    """The decoders of every class that interpolates towards a skip connection."""
    smp = pytest.importorskip('segmentation_models_pytorch', reason='smp brings timm and torchvision')
    torch.manual_seed(0)
    model = getattr(smp, kind)('resnet18', encoder_weights=None)
    features = model.encoder(torch.rand(1, 3, 64, 64))
    assert len(sapa_mm.convert(model.decoder, SAPA, dry_run=True, example_inputs=(features,))) == SMP[kind]
    keys = model.state_dict().keys()
    model.decoder = sapa_mm.convert(model.decoder, SAPA, example_inputs=(features,))
    assert keys == {key for key in model.state_dict() if '.upsamplers.' not in key}
    model(torch.rand(2, 3, 96, 64)).square().mean().backward()
    assert all(p.grad is not None for p in model.decoder.upsamplers.parameters())


def test_whole_unet_of_segmentation_models_pytorch():
    """Nearest is its own interpolation."""
    smp = pytest.importorskip('segmentation_models_pytorch', reason='smp brings timm and torchvision')
    torch.manual_seed(0)
    model = smp.Unet('resnet18', encoder_weights=None).eval()
    image = torch.rand(1, 3, 96, 64)
    torch.testing.assert_close(sapa_mm.convert(model, dict(type='Nearest'))(image), model(image), rtol=0, atol=0)
