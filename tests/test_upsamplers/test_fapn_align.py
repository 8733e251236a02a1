# SPDX-License-Identifier: Apache-2.0
"""FaPN's alignment against its definition written as loops and mmcv's operator, its published size, and bad input."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from upsampler_helpers import (
    SIZES,
    at_all_positions,
    bilinear,
    check_gradients,
    count_macs,
    count_parameters,
    maps,
    randomize,
)

from sapa_mm.upsamplers import FaPNAlign
from sapa_mm.upsamplers.fapn_align import DeformableConv


def make(channels=(8, 3), **options):
    return randomize(FaPNAlign(*channels, **options), std=0.2)


def definition(module, feature, guide):
    """All but the deformable convolution by torch, that one position, group and point at a time: aligned, lateral."""
    up = F.interpolate(feature, guide.shape[2:], mode='bilinear', align_corners=False)
    gate = module.lateral_conv.conv_atten(F.adaptive_avg_pool2d(guide, 1)).sigmoid()
    lateral = module.lateral_conv.conv(guide * (1 + gate))
    where = module.offset_norm(module.offset(torch.cat([lateral, 2 * up], 1)))
    conv = module.dcpack_L2
    predicted = conv.conv_offset_mask(where)[0]
    channels = feature.shape[1]
    per_group = channels // 8

    def position(i, j):
        out = conv.bias.clone()
        for group, part in enumerate(up[0].chunk(8)):
            for t in range(9):
                y, x = predicted[2 * (9 * group + t) : 2 * (9 * group + t) + 2, i, j]
                mask = predicted[2 * 72 + 9 * group + t, i, j].sigmoid()
                sampled = mask * bilinear(part, i + t // 3 - 1 + y, j + t % 3 - 1 + x)
                weight = conv.weight[:, group * per_group : (group + 1) * per_group, t // 3, t % 3]
                out = out + weight @ sampled
        return out.relu()

    return at_all_positions(channels, guide.shape[2:], position), lateral


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_matches_definition(sizes):
    module, (feature, guide) = make(), maps(*sizes, (8, 3))
    with torch.no_grad():
        aligned, lateral = definition(module, feature, guide)
        torch.testing.assert_close(module(feature, guide), aligned)
        torch.testing.assert_close(module.fuse(feature, guide), aligned + lateral)


def test_norm():
    module, (feature, guide) = make((32, 3), norm='group'), maps((2, 2), (3, 4), (32, 3))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide)[0])


def test_deformable_convolution_is_mmcv_s():
    ops = pytest.importorskip('mmcv.ops')
    conv = randomize(DeformableConv(16), std=0.3)
    x, where = maps((6, 5), (6, 5), (16, 16))
    offset, mask = conv.conv_offset_mask(where).split([144, 72], 1)
    expected = ops.modulated_deform_conv2d(x, offset, mask.sigmoid(), conv.weight, conv.bias, 1, 1, 1, 1, 8)
    torch.testing.assert_close(conv(x, where), expected)


def test_starts_as_a_convolution_of_half_its_weights():
    torch.manual_seed(0)
    module = FaPNAlign(8).double()
    feature, guide = maps((3, 4), (6, 8), (8, 8))
    up = F.interpolate(feature, (6, 8), mode='bilinear', align_corners=False)
    conv = module.dcpack_L2
    torch.testing.assert_close(module(feature, guide), F.conv2d(up, conv.weight / 2, conv.bias, padding=1).relu())


def test_gradients():
    module = make()
    module.forward = partial(module.forward, fused=True)
    check_gradients(module, *maps((2, 2), (4, 3), (8, 3)), fast_mode=True)


@pytest.mark.parametrize('x, y', [(256, 256), (32, 6)])
def test_cost(x, y):
    count = y**2 + y * x + 11 * x**2 + x + 216 * (9 * x + 1)
    module = FaPNAlign(x, y)
    assert count_parameters(module) == count
    assert count_parameters(FaPNAlign(x, y, norm='group')) == count + 2 * x
    if x == 256:
        assert count == 1_350_104
    macs = count_macs(module, *maps((4, 6), (8, 12), (x, y), dtype=torch.float32))
    assert macs == 24 * (4 * (y * x + 11 * x**2 + 1944 * x) + 180 * x) + y**2


def test_initialisation():
    torch.manual_seed(0)
    module = FaPNAlign(64, norm='group')
    for _ in range(2):
        for conv in (module.lateral_conv.conv_atten, module.lateral_conv.conv, module.offset, module.dcpack_L2):
            bound = conv.weight[0].numel() ** -0.5  # torch's own rule
            assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert not any(p.any() for p in module.dcpack_L2.conv_offset_mask.parameters())
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 1, 2)
        module.init_weights()


def test_loads_published_layout():
    source, target = make((32, 3), norm='group'), randomize(FaPNAlign(32, 3, norm='group'), seed=1)
    state = {name.replace('offset_norm.', 'offset.norm.'): x for name, x in source.state_dict().items()}
    assert 'offset.norm.weight' in state
    target.load_state_dict(state, strict=True)
    inputs = maps((2, 2), (3, 4), (32, 3))
    assert torch.equal(target(*inputs), source(*inputs))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(norm='batch'), r"norm must be one of \('group', None\), got 'batch'"),
        (dict(in_channels=12), 'in_channels must be divisible by the 8 groups, got 12'),
        (dict(norm='group'), 'needs in_channels divisible by 32, got 16'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FaPNAlign(**{'in_channels': 16, **options})
