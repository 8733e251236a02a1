# SPDX-License-Identifier: Apache-2.0
"""CARAFE against its definition written as loops, mmcv's module, its published size, and bad input."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sapa_mm.ops import backend, feature_assembly
from sapa_mm.upsamplers import CARAFE, CARAFEDownsample

OPTIONS = [
    dict(),
    dict(kernel_size=3, groups=2),
    dict(scale_factor=3, encoder_kernel=1),
    dict(scale_factor=4, kernel_size=3, groups=4, encoder_dilation=2),
    dict(scale_factor=1, kernel_size=1, encoder_kernel=5),
]


def make(channels=4, **options):
    """Weights large enough that kernels are far from uniform."""
    torch.manual_seed(0)
    module = CARAFE(channels, **{'compressed_channels': 3, **options}).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def maps(size, guide_size, channels=4):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    return feature, torch.zeros(2, 3, *guide_size)


def definition(module, feature):
    """One output position at a time: its logits picked from the encoder's channels, its window as two loops."""
    scale, side, groups = module.scale_factor, module.kernel_size, module.groups
    encoded = module.content_encoder(module.channel_compressor(feature))
    n, channels, h, w = feature.shape
    out = feature.new_zeros(n, channels, scale * h, scale * w)
    for i in range(scale * h):
        for j in range(scale * w):
            row, column = i // scale, j // scale
            sub_pixel = (i % scale) * scale + j % scale
            for c in range(channels):
                first = c // (channels // groups) * side**2
                logits = encoded[:, [(first + t) * scale**2 + sub_pixel for t in range(side**2)], row, column]
                weights = logits.softmax(1)
                for t in range(side**2):
                    r, q = row + t // side - side // 2, column + t % side - side // 2
                    if 0 <= r < h and 0 <= q < w:
                        out[:, c, i, j] += weights[:, t] * feature[:, c, r, q]
    return out


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_matches_definition(options):
    module = make(**options)
    scale = module.scale_factor
    feature, guide = maps((3, 4), (3 * scale, 4 * scale))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_odd_and_other_sizes(scale):
    module = make(scale_factor=scale)
    height, width = 3 * scale, 4 * scale
    feature, _ = maps((3, 4), (1, 1))
    whole = module(feature, torch.zeros(2, 1, height, width))
    odd = module(feature, torch.zeros(2, 1, height - 1, width - scale + 1))
    assert torch.equal(odd, whole[:, :, : height - 1, : width - scale + 1])
    for size in ((height + 5, width), (2, 3)):
        expected = F.interpolate(whole, size, mode='bilinear', align_corners=False)
        assert torch.equal(module(feature, torch.zeros(2, 1, *size)), expected)


@pytest.mark.parametrize('size', [(6, 8), (5, 7)], ids=str)
def test_kernels_are_those_that_mix(size):
    module = make(groups=2)
    feature, guide = maps((3, 4), size)
    assembled = feature_assembly(feature, module.kernels(feature, guide), module.kernel_size, groups=2)
    torch.testing.assert_close(assembled, module(feature, guide))


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_kernels_sum_to_one(options):
    module = make(**options)
    groups = module.groups
    kernels = module.kernels(*maps((3, 4), (7, 11)))
    assert kernels.shape == (2, groups * module.kernel_size**2, 7, 11)
    sums = kernels.unflatten(1, (groups, -1)).sum(2)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize('options', [dict(kernel_size=3), dict(kernel_size=3, groups=2)], ids=str)
def test_gradcheck(options):
    module = make(2, **options)
    feature, guide = maps((3, 2), (5, 4), channels=2)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (x, guide))

    assert gradcheck(function, (feature.requires_grad_(), *module.parameters()))


@pytest.mark.parametrize(
    'channels, options, count',
    [
        (256, {}, 74_148),
        (512, {}, 90_532),
        (
            8,
            dict(scale_factor=3, kernel_size=3, groups=2, encoder_kernel=5, compressed_channels=6),
            8 * 6 + 6 + (25 * 6 + 1) * 9 * 2 * 9,
        ),
    ],
)
def test_parameter_count(channels, options, count):
    assert sum(p.numel() for p in CARAFE(channels, **options).parameters()) == count


def assert_published_initialisation(module):
    compressor, encoder = module.channel_compressor, module.content_encoder
    bound = (6 / (256 + 64)) ** 0.5
    assert 0.98 * bound < compressor.weight.abs().max() <= bound
    assert 0.00095 < encoder.weight.std() < 0.00105
    assert not compressor.bias.any() and not encoder.bias.any()


def test_initialisation():
    torch.manual_seed(0)
    module = CARAFE(256)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_loads_mmcv_s_module(options):
    """Same keys and shapes; the forward of mmcv's operator has no CPU version, the golden vectors stand for it."""
    carafe = pytest.importorskip('mmcv.ops.carafe')
    names = dict(kernel_size='up_kernel', groups='up_group')
    published = carafe.CARAFEPack(
        8, **{'scale_factor': 2, 'compressed_channels': 3, **{names.get(k, k): v for k, v in options.items()}}
    )
    module = CARAFE(8, **{'compressed_channels': 3, **options})
    module.load_state_dict(published.state_dict(), strict=True)
    assert torch.equal(module.content_encoder.weight, published.content_encoder.weight)
    assert module.content_encoder.padding == published.content_encoder.padding


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(kernel_size=4), ValueError, 'kernel_size must be odd and between 1 and 15, got 4'),
        (dict(kernel_size=5.0), TypeError, 'kernel_size must be an int, got float'),
        (dict(encoder_kernel=2), ValueError, 'encoder_kernel must be odd, got 2'),
        (dict(encoder_dilation=0), ValueError, 'encoder_dilation must be a positive integer, got 0'),
        (dict(scale_factor=0), ValueError, 'scale_factor must be a positive integer, got 0'),
        (dict(compressed_channels=0), ValueError, 'compressed_channels must be a positive integer, got 0'),
        (dict(groups=3), ValueError, 'groups must divide in_channels, got 3 groups and 8 channels'),
        (dict(groups=0), ValueError, 'groups must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        CARAFE(**{'in_channels': 8, **options})


def downsample(**options):
    torch.manual_seed(0)
    module = CARAFEDownsample(4, **{'compressed_channels': 3, **options}).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 2)], ids=str)
@pytest.mark.parametrize('options', [dict(), dict(kernel_size=3, groups=2), dict(scale_factor=3)], ids=str)
def test_downsampling_matches_definition(options, size):
    module, (feature, _) = downsample(**options), maps(size, (1, 1))
    scale, side = module.scale_factor, module.kernel_size
    with torch.no_grad():
        logits = module.content_encoder(module.channel_compressor(feature)).unflatten(1, (module.groups, -1))
        weights = logits.softmax(2).repeat_interleave(4 // module.groups, 1)
        padded = F.pad(feature, (side // 2,) * 4)
        out = module(feature)
        assert out.shape == (2, 4, -(-size[0] // scale), -(-size[1] // scale))
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                window = padded[:, :, scale * i : scale * i + side, scale * j : scale * j + side].flatten(2)
                torch.testing.assert_close(out[:, :, i, j], (window * weights[:, :, :, i, j]).sum(2))


def test_downsampling_starts_as_a_mean():
    torch.manual_seed(0)
    module = CARAFEDownsample(256)
    for _ in range(2):
        assert_published_initialisation(module)
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 1, 2)
        module.init_weights()
    feature = torch.ones(1, 256, 8, 8)
    torch.testing.assert_close(module(feature)[:, :, 1:-1, 1:-1], feature[:, :, 1:3, 1:3])
    assert module(feature[:0]).shape == (0, 256, 4, 4)


def test_downsampling_cost_and_gradients():
    module = CARAFEDownsample(8, 3, 3, 2, 5, 1, 6)
    assert sum(p.numel() for p in module.parameters()) == 8 * 6 + 6 + (25 * 6 + 1) * 2 * 9
    if backend() == 'native':  # the reference does other products
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.zeros(1, 8, 6, 9))
        assert counter.get_total_flops() == 2 * 6 * (9 * 8 * 6 + 25 * 2 * 9 * 6 + 9 * 8)
    module = downsample(kernel_size=3)
    assert gradcheck(module, maps((3, 4), (1, 1))[0].requires_grad_())
    module(maps((3, 4), (1, 1))[0]).square().sum().backward()
    assert all(p.grad.any() for p in module.parameters())


def test_downsampling_bad_input():
    with pytest.raises(ValueError, match='groups must divide in_channels, got 3 groups and 8 channels'):
        CARAFEDownsample(8, groups=3)
    with pytest.raises(ValueError, match=r'feature must be \(N, 8, H, W\), got \(1, 7, 4, 4\)'):
        CARAFEDownsample(8)(torch.zeros(1, 7, 4, 4))
