# SPDX-License-Identifier: Apache-2.0
"""FreqFusion against its definition written as loops, its published size and layout, gradients and bad input."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from upsampler_helpers import (
    SIZES,
    assemble,
    at_all_positions,
    check_gradients,
    clamped,
    count_macs,
    count_parameters,
    maps,
    randomize,
)

from sapa_mm.upsamplers import FreqFusion

OPTIONS = [
    dict(),
    dict(hamming_window=False, hr_residual=False),
    dict(comp_feat_upsample=False),
    dict(comp_feat_upsample=False, use_high_pass=False),
    dict(semi_conv=False, use_high_pass=False),
    dict(semi_conv=False, upsample_mode='bilinear', lowpass_kernel=3),
    dict(encoder_dilation=2, highpass_kernel=5, lowpass_kernel=3),
    dict(encoder_kernel=1, resample=True, resample_groups=2),
    dict(resample=True, resample_groups=1, resample_norm=False, semi_conv=False),
]


def make(channels=(4, 3), **options):
    return randomize(FreqFusion(*channels, **{'compressed_channels': 8, **options}), std=0.3)


def filtered(x, kernels, size):
    """The windows of ``x``, ``(C, h, w)``, mixed for every position of ``size``."""
    (h, w), (height, width) = x.shape[1:], size
    return at_all_positions(len(x), size, lambda i, j: assemble(x, kernels[:, i, j], i * h // height, j * w // width))


def repeated(x, size):
    (h, w), (height, width) = x.shape[2:], size
    return at_all_positions(x.shape[1], size, lambda i, j: x[0, :, i * h // height, j * w // width])


def definition(module, feature, guide, hamming_window=True):
    size = tuple(guide.shape[2:])
    cy, cx = module.hr_channel_compressor(guide), module.lr_channel_compressor(feature)
    first, second = module.content_encoder, getattr(module, 'content_encoder2', None)

    def norm(logits):
        kernels = logits[0].softmax(0)
        if hamming_window:
            side = round(len(kernels) ** 0.5)
            n = torch.arange(side, dtype=torch.float64)
            window = 0.54 - 0.46 * torch.cos(2 * torch.pi * n / max(side - 1, 1)) if side > 1 else torch.ones(1)
            kernels = kernels * torch.outer(window, window).flatten().float()[:, None, None]
        return kernels / kernels.sum(0)

    a = None
    if not module.semi_conv:
        both = repeated(cx, size) + cy
        low, high = first(both), second(both) if second else None
    elif not module.comp_feat_upsample:
        low = first(cy) + repeated(first(cx), size)
        high = second(cy) + repeated(second(cx), size) if second else None
    else:
        a = second(cy)
        cy = 2 * cy - filtered(cy[0], norm(a), size)
        b = first(cy)
        low = b + filtered(first(cx)[0], norm(b), size)
        high = a + filtered(second(cx)[0], norm(low), size)
    kernels = norm(low)
    x = feature
    if not module.semi_conv:
        bilinear = module.upsample_mode == 'bilinear'
        x = F.interpolate(x, size, mode='bilinear') if bilinear else repeated(x, size)
    x = filtered(x[0], kernels, size)
    y = guide
    if high is not None:
        y = (2 if module.hr_residual else 1) * guide - filtered(guide[0], norm(high), size)
    if module.dysampler is not None:
        x = resampled(module.dysampler, x, cx, cy)
    return kernels[None], y, x


def resampled(module, x, cx, cy):
    """For exactly twice the size: one position, one group at a time."""

    def joined(x, norm):
        x = norm(x)
        _, c, h, w = x.shape
        steps = [(i, j) for i in (-2, 0, 2) for j in (-2, 0, 2) if (i, j) != (0, 0)]

        def cosines(i, j):
            here, out = x[0, :, i, j], []
            for di, dj in steps:
                inside = 0 <= i + di < h and 0 <= j + dj < w
                there = x[0, :, i + di, j + dj] if inside else torch.zeros(c, dtype=x.dtype)
                out.append(here @ there / (here.norm().clamp(min=1e-8) * there.norm().clamp(min=1e-8)))
            return torch.stack(out)

        return torch.cat([x, at_all_positions(8, (h, w), cosines)], 1)

    low, high = joined(cx, module.norm_lr), joined(cy, module.norm_hr)
    groups, (h, w) = module.groups, cx.shape[2:]

    def predicted(of_low, of_high, axis, group, i, j):
        channel = axis * groups + group
        return of_low[0, channel * 4 + i % 2 * 2 + j % 2, i // 2, j // 2] + of_high[0, channel, i, j]

    offsets, scales = (
        (module.offset(low), module.hr_offset(high)),
        (module.direct_scale(low), module.hr_direct_scale(high)),
    )

    def position(i, j):
        out = []
        for group, part in enumerate(x[0].chunk(groups)):
            move = [
                predicted(*offsets, axis, group, i, j) * predicted(*scales, axis, group, i, j).sigmoid()
                for axis in (0, 1)
            ]
            column = (j // 2 + (-0.25, 0.25)[j % 2] + move[0] + 0.5) / w * x.shape[3] - 0.5
            row = (i // 2 + (-0.25, 0.25)[i % 2] + move[1] + 0.5) / h * x.shape[2] - 0.5
            out.append(clamped(part, row, column))
        return torch.cat(out)

    return at_all_positions(x.shape[1], x.shape[2:], position)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_matches_definition(options):
    module, (feature, guide) = make(**options), maps((3, 4), (6, 8), (4, 3))
    with torch.no_grad():
        expected = definition(module, feature, guide, options.get('hamming_window', True))
        kernels, y, x = module.refine(feature, guide)
        for actual, wanted in zip((kernels, y, x, module(feature, guide)), (*expected, expected[2])):
            torch.testing.assert_close(actual, wanted)
        assert torch.equal(module.kernels(feature, guide), kernels)
        torch.testing.assert_close(kernels.sum(1), torch.ones_like(kernels[:, 0]))
        assert torch.equal(y, guide) == (not module.use_high_pass)


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('semi_conv', [True, False])
def test_any_size_matches_definition(semi_conv, sizes):
    module, (feature, guide) = make(semi_conv=semi_conv), maps(*sizes, (4, 3))
    with torch.no_grad():
        torch.testing.assert_close(module.refine(feature, guide), definition(module, feature, guide))


def test_resampler_at_odd_and_other_sizes():
    """With offsets of 0 it reads bilinearly at the places of its own grid: those of the map itself."""
    for sizes in SIZES:
        module, (feature, guide) = make(resample=True, resample_groups=2), maps(*sizes, (4, 3))
        for name in ('offset', 'hr_offset'):
            for parameter in getattr(module.dysampler, name).parameters():
                nn.init.zeros_(parameter)
        plain = make(resample=False)
        plain.load_state_dict({k: v for k, v in module.state_dict().items() if 'dysampler' not in k})
        expected = plain(feature, guide)
        if all(2 * c - s in (0, 1) for c, s in zip(*sizes)):
            torch.testing.assert_close(module(feature, guide), expected)
        assert module(feature, guide).shape == expected.shape


def test_fuse_adds_the_sharpened_guide():
    module, (feature, guide) = make((4, 4)), maps((3, 4), (6, 8), (4, 4))
    _, y, x = module.refine(feature, guide)
    assert torch.equal(module.fuse(feature, guide), y + x)
    assert not torch.equal(module.fuse(feature, guide), guide + x)


@pytest.mark.parametrize('options', [dict(), dict(resample=True, resample_groups=1)], ids=str)
def test_gradients(options):
    module = make((2, 2), lowpass_kernel=3, **options)
    module.forward = partial(module.forward, fused=True)
    check_gradients(module, *maps((2, 2), (4, 3), (2, 2)), fast_mode=True)


@pytest.mark.parametrize('x, y, m, low, high, e, g', [(256, 256, 64, 5, 3, 3, 4), (6, 9, 8, 3, 1, 1, 2)])
def test_cost(x, y, m, low, high, e, g):
    options = dict(lowpass_kernel=low, highpass_kernel=high, encoder_kernel=e, compressed_channels=m, resample_groups=g)
    k = low**2 + high**2
    plain, whole = FreqFusion(x, y, **options), FreqFusion(x, y, resample=True, **options)
    count = m * (x + y + 2) + k * (e**2 * m + 1)
    resampler = 20 * g * (9 * (m + 8) + 1)
    assert count_parameters(plain) == count and count_parameters(whole) == count + resampler + 4 * m
    assert count_parameters(FreqFusion(x, y, resample=True, resample_norm=False, **options)) == count + resampler
    if x == 256:
        assert (count, count + resampler + 4 * m) == (52_514, 104_690)
    inputs = maps((4, 6), (8, 12), (x, y), dtype=torch.float32)
    macs = x * m + 4 * y * m + 5 * e**2 * m * k + 4 * high**2 * m + 4 * low**2 * k + 4 * low**2 * x + 4 * high**2 * y
    assert count_macs(plain.refine, *inputs) == 24 * macs
    assert count_macs(whole.refine, *inputs) == 24 * (macs + 9 * (m + 8) * 32 * g)


def assert_published_initialisation(module):
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            fan_out, fan_in = (n * child.weight[0, 0].numel() for n in child.weight.shape[:2])
            bound = (6 / (fan_in + fan_out)) ** 0.5
            if name.startswith('content_encoder'):
                assert 0.00095 < child.weight.std() < 0.00105
            else:
                assert 0.98 * bound < child.weight.abs().max() <= bound, name
            assert not child.bias.any()


def test_initialisation():
    torch.manual_seed(0)
    module = FreqFusion(256, resample=True)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


def test_loads_published_layout():
    source, target = make(resample=True, resample_groups=2), make(resample=True, resample_groups=2)
    randomize(target, seed=1)
    published = dict(
        source.state_dict(),
        hamming_lowpass=torch.zeros(1, 1, 5, 5),
        hamming_highpass=torch.zeros(1, 1, 3, 3),
        **{'dysampler.init_pos': torch.zeros(1, 16, 1, 1)},
    )
    target.load_state_dict(published, strict=True)
    inputs = maps((3, 4), (6, 8), (4, 3))
    assert torch.equal(target(*inputs), source(*inputs))


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(lowpass_kernel=4), ValueError, 'kernel_size must be odd and between 1 and 15, got 4'),
        (dict(highpass_kernel='3'), TypeError, 'kernel_size must be an int, got str'),
        (dict(encoder_kernel=2), ValueError, 'encoder_kernel must be odd, got 2'),
        (dict(compressed_channels=0), ValueError, 'compressed_channels must be a positive integer, got 0'),
        (dict(use_high_pass=False), ValueError, 'set comp_feat_upsample=False or semi_conv=False'),
        (dict(upsample_mode='bicubic'), ValueError, 'upsample_mode must be one of .*, got .bicubic.'),
        (dict(resample=True, resample_groups=3), ValueError, 'must divide in_channels, got 3 groups and 8 channels'),
        (dict(resample=True, compressed_channels=12), ValueError, 'compressed_channels divisible by 8, got 12'),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        FreqFusion(**{'in_channels': 8, **options})
