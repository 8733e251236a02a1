# SPDX-License-Identifier: Apache-2.0
"""DySample against its definition written as loops, bilinear interpolation, its published size, and bad input."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

from sapa_mm.upsamplers import DySample

VARIANTS = {
    'lp': dict(style='lp'),
    'pl': dict(style='pl'),
    'lp-dyscope': dict(style='lp', dyscope=True),
    'pl-dyscope': dict(style='pl', dyscope=True),
    'lp-scope_bias': dict(style='lp', dyscope=True, scope_bias=True),
    'pl-scope_bias': dict(style='pl', dyscope=True, scope_bias=True),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    return request.param


def make(channels=8, scale=0.8, **options):
    """Offsets of about a pixel, so that samples wander over cells and out of the map."""
    torch.manual_seed(0)
    module = DySample(channels, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)
    return module


def maps(size, guide_size, channels=8, batch=2):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    return feature, torch.zeros(batch, 3, *guide_size)


def sample(x, row, column):
    """``x (C, h, w)`` at one position, clamped to the map."""
    h, w = x.shape[1:]
    row, column = min(max(row, 0.0), h - 1), min(max(column, 0.0), w - 1)
    top, left = math.floor(row), math.floor(column)
    a, b = row - top, column - left
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    upper = x[:, top, left] * (1 - b) + x[:, top, right] * b
    lower = x[:, bottom, left] * (1 - b) + x[:, bottom, right] * b
    return upper * (1 - a) + lower * a


def definition(module, feature):
    """One output position and group at a time, with the published order of the offset's channels."""
    scale, groups = module.scale_factor, module.groups
    n, channels, h, w = feature.shape
    x = feature
    if module.style == 'pl':
        x = feature.view(n, channels // scale**2, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3)
        x = x.reshape(n, channels // scale**2, h * scale, w * scale)
    offset = module.offset(x)
    offset = 0.5 * offset * torch.sigmoid(module.scope(x)) if module.dyscope else 0.25 * offset
    out = feature.new_zeros(n, channels, scale * h, scale * w)
    each = channels // groups
    for m in range(n):
        for i in range(scale * h):
            for j in range(scale * w):
                row, column, a, b = i // scale, j // scale, i % scale, j % scale
                for g in range(groups):
                    if module.style == 'lp':  # axis, group, sub-pixel
                        dx, dy = (
                            offset[m, (axis * groups + g) * scale**2 + a * scale + b, row, column] for axis in (0, 1)
                        )
                    else:
                        dx, dy = (offset[m, axis * groups + g, i, j] for axis in (0, 1))
                    out[m, g * each : (g + 1) * each, i, j] = sample(
                        feature[m, g * each : (g + 1) * each],
                        row + (a - (scale - 1) / 2) / scale + dy.item(),
                        column + (b - (scale - 1) / 2) / scale + dx.item(),
                    )
    return out


@pytest.mark.parametrize('options', [dict(), dict(groups=1), dict(groups=2, channels=18, scale_factor=3)], ids=str)
def test_matches_definition(variant, options):
    module = make(**{**variant, **options})
    scale = module.scale_factor
    feature, guide = maps((3, 4), (3 * scale, 4 * scale), module.in_channels)
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature))


@pytest.mark.parametrize('size', [(10, 14), (20, 28), (8, 11), (25, 16), (5, 7), (3, 2)], ids=str)
def test_zero_offsets_are_bilinear(variant, size):
    """Any size: twice, 4 times, 1.6 times, other ratios, equal and smaller."""
    module = make(scale=0, **variant)
    feature, guide = maps((5, 7), size)
    expected = F.interpolate(feature, size, mode='bilinear', align_corners=False)
    torch.testing.assert_close(module(feature, guide), expected)


@pytest.mark.parametrize('scale', [2, 3])
def test_odd_and_other_sizes(variant, scale):
    module = make(channels=36, scale_factor=scale, scale=0.3, **variant)
    height, width = 3 * scale, 4 * scale
    feature, _ = maps((3, 4), (1, 1), channels=36)
    whole = module(feature, torch.zeros(2, 1, height, width))
    odd = module(feature, torch.zeros(2, 1, height - 1, width - scale + 1))
    assert torch.equal(odd, whole[:, :, : height - 1, : width - scale + 1])
    for size in ((height + 5, width), (2, 3)):
        out = module(feature, torch.zeros(2, 1, *size))
        assert out.shape == (2, 36, *size)
        assert feature.amin() <= out.amin() and out.amax() <= feature.amax()  # each is a mix of four, once


def test_positions():
    """Pixels of the feature, x first; the base of the finer map's pixels, and what the offset adds."""
    module = make(scale=0, groups=2)
    feature, guide = maps((3, 4), (6, 8))
    positions = module.positions(feature, guide)
    assert positions.shape == (2, 2, 2, 6, 8)
    x, y = torch.arange(8).double() / 2 - 0.25, torch.arange(6).double() / 2 - 0.25
    assert torch.equal(positions[0, 1, 0], x.expand(6, 8))
    assert torch.equal(positions[0, 1, 1], y[:, None].expand(6, 8))
    with torch.no_grad():
        module.offset.bias[:4] = 2  # x, first group, its four sub-pixels
        module.offset.bias[12:] = -4  # y, last group
    moved = module.positions(feature, guide)[0]
    assert torch.equal(moved[0, 0], (x + 0.5).expand(6, 8))
    assert torch.equal(moved[1, 1], (y - 1)[:, None].expand(6, 8))
    assert torch.equal(moved[1, 0], positions[0, 1, 0]) and torch.equal(moved[0, 1], positions[0, 0, 1])


def test_gradcheck(variant):
    module = make(channels=4, groups=2, scale=0.3, **variant)
    feature, guide = maps((3, 2), (5, 4), channels=4, batch=1)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (x, guide))

    assert gradcheck(function, (feature.requires_grad_(), *module.parameters()))


@pytest.mark.parametrize('channels, scale, groups', [(256, 2, 4), (18, 3, 2)])
def test_parameter_count(channels, scale, groups):
    def count(**options):
        module = DySample(channels, scale_factor=scale, groups=groups, **options)
        return sum(p.numel() for p in module.parameters())

    fine = scale**2
    assert count() == 2 * groups * fine * (channels + 1)
    assert count(dyscope=True) == 2 * groups * fine * (2 * channels + 1)
    assert count(dyscope=True, scope_bias=True) == 4 * groups * fine * (channels + 1)
    assert count(style='pl') == 2 * groups * (channels // fine + 1)
    assert count(style='pl', dyscope=True) == 2 * groups * (2 * channels // fine + 1)


def test_published_parameter_counts():
    """Four stages of 256 channels, weights only: 32.7 K, and 65.5 K with dynamic scope."""
    for options, count in ((dict(), 32_768), (dict(dyscope=True), 65_536)):
        assert 4 * sum(p.numel() for n, p in DySample(256, **options).named_parameters() if 'weight' in n) == count


def assert_published_initialisation(module):
    assert 0.0009 < module.offset.weight.std() < 0.0011
    assert not module.offset.bias.any()
    if module.dyscope:
        assert not any(p.any() for p in module.scope.parameters())


def test_initialisation(variant):
    torch.manual_seed(0)
    module = DySample(256, **variant)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


@pytest.mark.parametrize('prefix', ['', 'neck.upsamplers.2.'])
def test_loads_the_published_buffer(variant, prefix):
    """`init_pos` of a published checkpoint is a constant; it is taken and not kept."""
    source, target = make(**variant), make(scale=2, **variant)
    state = {prefix + name: x for name, x in source.state_dict().items()}
    state[f'{prefix}init_pos'] = torch.zeros(1, 32, 1, 1)
    root = target
    for part in reversed(prefix.split('.')[:-1]):
        parent = nn.Module()
        parent.add_module(part, root)
        root = parent
    root.load_state_dict(state, strict=True)
    assert f'{prefix}init_pos' in state, "the caller's dict was changed"
    inputs = maps((5, 3), (9, 6))
    assert torch.equal(target(*inputs), source(*inputs))


def test_bfloat16_does_not_round_positions():
    """At 200 pixels bfloat16 is one pixel apart; the positions stay float32."""
    module = make(scale=0).float()
    feature = torch.arange(200.0).expand(2, 8, 2, 200)
    guide = torch.zeros(2, 1, 4, 400)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        positions = module.positions(feature, guide)
        out = module(feature, guide)
    assert positions.dtype == torch.float32 and out.dtype == feature.dtype
    expected = F.interpolate(feature, (4, 400), mode='bilinear', align_corners=False)
    torch.testing.assert_close(out, expected)
    half = module.bfloat16()(feature.bfloat16(), guide)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=2**-8, atol=0.01)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(style='pp'), r"style must be one of \('lp', 'pl'\), got 'pp'"),
        (dict(groups=3), 'groups must divide in_channels, got 3 groups and 8 channels'),
        (dict(groups=0), 'groups must be a positive integer, got 0'),
        (dict(scale_factor=0), 'scale_factor must be a positive integer, got 0'),
        (
            dict(style='pl', scale_factor=3),
            r"style='pl' needs in_channels divisible by scale_factor\*\*2 = 9, got 8",
        ),
        (dict(scope_bias=True), 'scope_bias needs dyscope, got scope_bias=True and dyscope=False'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DySample(**{'in_channels': 8, **options})
