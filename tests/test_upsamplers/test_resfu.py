# SPDX-License-Identifier: Apache-2.0
"""ReSFU against its definition written as loops, its published size and layout, gradients and bad input."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from upsampler_helpers import (
    SIZES,
    at_all_positions,
    check_gradients,
    clamped,
    count_macs,
    count_parameters,
    maps,
    randomize,
)

from sapa_mm.ops import deformable_assembly
from sapa_mm.upsamplers import ReSFU
from sapa_mm.upsamplers.resfu import guided_filter

OPTIONS = [
    dict(),
    dict(kernel_size=5, groups=2, norm_guide=False),
    dict(scale_factor=4, filter_stride=1, radius=3, norm_feature=False),
    dict(filter_stride=3, radius=6, eps=0.1, groups=8),
]


def make(channels=(6, 4), **options):
    return randomize(ReSFU(*channels, **{'embed_dims': 8, **options}), std=0.2)


def mean_around(x, radius):
    """Mean over the part of the window inside the map, ``(C, h, w)``."""
    _, h, w = x.shape
    return at_all_positions(
        len(x),
        (h, w),
        lambda i, j: x[:, max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1].mean((1, 2)),
    )[0]


def filter_by_definition(guide, x, radius, eps, stride):
    size = guide.shape[1:]
    height, width = (max(s // stride, 1) for s in size)
    p, q = (t[:, ::stride, ::stride][:, :height, :width] for t in (x, guide))
    mean_p, mean_q = mean_around(p, radius), mean_around(q, radius)
    a = (mean_around(p * q, radius) - mean_p * mean_q) / (mean_around(q * q, radius) - mean_q**2 + eps)
    b = mean_p - a * mean_q
    a, b = (F.interpolate(mean_around(t, radius)[None], size, mode='bilinear')[0] for t in (a, b))
    return a * guide + b


def repeated(x, i, j):
    """``x``, ``(C, H, W)``, at a position clamped to it."""
    return x[:, min(max(i, 0), x.shape[1] - 1), min(max(j, 0), x.shape[2] - 1)]


def scores_by_definition(module, key, query):
    key, query = (F.group_norm(x[None], 8, module.norm.weight, module.norm.bias)[0] for x in (key, query))
    side, groups = module.weight.shape[2], module.groups

    def position(i, j):
        out = module.bias[0, :, 0, 0].clone()
        for t in range(side**2):
            di, dj = ((n - side // 2) * module.dilation for n in divmod(t, side))
            difference = repeated(key, i + di, j + dj) - query[:, i, j]
            weight = module.weight[:, :, t // side, t % side]
            out = out + torch.cat([w @ d for w, d in zip(weight.chunk(groups), difference.chunk(groups))])
        return out

    return module.channel_compressor(at_all_positions(128, key.shape[1:], position))[0]


def definition(module, feature, guide):
    (h, w), size = feature.shape[2:], guide.shape[2:]
    query = module.q(module.norm_y(guide))[0]
    key = F.interpolate(module.k(module.norm_x(feature)), size, mode='bilinear')[0]
    filtered = filter_by_definition(query, key, module.radius // module.filter_stride, module.eps, module.filter_stride)
    bell = torch.tensor([-0.5, 0, -0.5], dtype=torch.float64).exp()
    bell = torch.outer(bell, bell) / bell.sum() ** 2
    smooth = at_all_positions(
        len(query),
        size,
        lambda i, j: sum(bell[a, b] * repeated(query, i + a - 1, j + b - 1) for a in range(3) for b in range(3)),
    )[0]
    scores = scores_by_definition(module.semantic_scores, key, filtered)
    scores = scores + scores_by_definition(module.detail_scores, smooth, query)
    side = module.kernel_size

    def position(i, j):
        logits, values = [], []
        for t in range(side**2):
            di, dj = (n - side // 2 for n in divmod(t, side))
            inside = 0 <= i + di * module.scale_factor < size[0] and 0 <= j + dj * module.scale_factor < size[1]
            logits.append(scores[t, i, j] if inside else scores.new_tensor(float('-inf')))
            place = (i + 0.5) * h / size[0] - 0.5 + di, (j + 0.5) * w / size[1] - 0.5 + dj
            values.append(clamped(feature[0], *place))
        return torch.stack(values, 1) @ torch.stack(logits).softmax(0)

    return at_all_positions(feature.shape[1], size, position)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_matches_definition(options):
    module = make(**options)
    feature, guide = maps((2, 3), [module.scale_factor * side for side in (2, 3)], (6, 4))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide))


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_any_size_matches_definition(sizes):
    # torch's GroupNorm refuses one image of one position and a channel per group
    module, (feature, guide) = make(norm_feature=sizes[0] != (1, 1)), maps(*sizes, (6, 4))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide))


def test_kernels_and_positions_are_those_that_mix():
    module, (feature, guide) = make(), maps((3, 4), (5, 9), (6, 4), batch=2)
    kernels, positions = module.kernels(feature, guide), module.positions(feature, guide)
    torch.testing.assert_close(kernels.sum(2), torch.ones_like(kernels[:, :, 0]))
    cell = torch.stack(torch.meshgrid(torch.arange(9) * 4 // 9, torch.arange(5) * 3 // 5, indexing='xy'))
    out = deformable_assembly(feature, kernels[:, 0], (positions - cell).flatten(1, 3))
    torch.testing.assert_close(out, module(feature, guide))


def test_all_weight_in_the_middle_is_bilinear_interpolation():
    module, (feature, guide) = make(), maps((3, 4), (6, 8), (6, 4))
    for scores in (module.semantic_scores, module.detail_scores):
        nn.init.zeros_(scores.channel_compressor[4].weight)
        scores.channel_compressor[4].bias.data = torch.tensor([0.0] * 4 + [1000] + [0] * 4).double()
    expected = F.interpolate(feature, (6, 8), mode='bilinear', align_corners=False)
    torch.testing.assert_close(module(feature, guide), expected)


def test_guided_filter_keeps_what_is_linear_in_the_guide():
    guide, _ = maps((9, 8), (1, 1), (2, 1))
    torch.testing.assert_close(guided_filter(guide, 3 * guide - 1, 4, 1e-12, 1), 3 * guide - 1)


def test_gradients():
    check_gradients(make(), *maps((2, 2), (4, 3), (6, 4)), fast_mode=True)


def test_lr_mult_scales_the_gradients_of_the_difference_convolutions_alone():
    grads = []
    for lr_mult in (1, 500):
        module = make(lr_mult=lr_mult)
        feature, guide = maps((3, 4), (6, 8), (6, 4))
        (module(feature, guide) * feature.sum()).sum().backward()
        grads.append({name: p.grad for name, p in module.named_parameters()})
    for name, grad in grads[0].items():
        factor = 500 if '_scores' in name else 1
        # the bias of a shared norm cancels in differences: its gradient is rounding alone
        torch.testing.assert_close(grads[1][name], factor * grad, atol=1e-9, rtol=1e-7)
    assert grads[0]['detail_scores.weight'].abs().max() > 1e-3


@pytest.mark.parametrize('x, y, e, g, k', [(256, 256, 32, 4, 3), (6, 4, 16, 2, 5)])
def test_cost(x, y, e, g, k):
    scores = 128 * e * k**2 // g + 128 + 2 * e + 128**2 // g + 128 + 256 + 129 * k**2
    module = ReSFU(x, y, embed_dims=e, groups=g, kernel_size=k)
    count = (x + y) * e + 2 * e + 2 * scores
    assert count_parameters(module) == count + 2 * (x + y)
    assert count_parameters(ReSFU(x, y, 2, k, e, g, norm_guide=False, norm_feature=False)) == count
    if x == 256:
        assert count_parameters(module) == 47_570
    macs = count_macs(module, *maps((4, 6), (8, 12), (x, y), dtype=torch.float32))
    gaussian = 4 * 9 * e
    per_scores = 512 * (e * (k**2 + 1) + 128) // g + 512 * k**2
    assert macs == 24 * (x * e + 4 * y * e + 2 * per_scores + 20 * k**2 * x + gaussian)


def assert_published_initialisation(module):
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            assert 0.015 < child.weight.std() < 0.025 and not child.bias.any()
    for scores in (module.semantic_scores, module.detail_scores):
        deviation = (2 / (128 * 9)) ** 0.5
        assert 0.95 * deviation < scores.weight.std() < 1.05 * deviation
        assert not scores.bias.any() and (scores.norm.weight == 1).all()


def test_initialisation():
    torch.manual_seed(0)
    module = ReSFU(256)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


def test_loads_published_layout():
    source, target = make(), randomize(make(), seed=1)
    target.load_state_dict(dict(source.state_dict(), **{'GF.kernel': torch.ones(8, 1, 1, 9)}), strict=True)
    inputs = maps((3, 4), (6, 8), (6, 4))
    assert torch.equal(target(*inputs), source(*inputs))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(kernel_size=2), 'kernel_size must be odd, got 2'),
        (dict(embed_dims=12), 'embed_dims must be divisible by 8 and by groups, .* got 12 and 4 groups'),
        (dict(groups=3, embed_dims=24), '128 by groups, got 24 and 3 groups'),
        (dict(in_channels=48), 'norm of the feature has 32 groups and needs channels divisible by 32, got 48'),
        (dict(guide_channels=40), 'norm of the guide has 32 groups and needs channels divisible by 32, got 40'),
        (dict(radius=1), 'radius must be at least filter_stride, got 1 and 2'),
        (dict(eps=0), 'eps must be positive, got 0'),
        (dict(scale_factor=0), 'scale_factor must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ReSFU(**{'in_channels': 8, **options})
