# SPDX-License-Identifier: Apache-2.0
"""Nearest and Bilinear against their definitions."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from sapa_mm.upsamplers import Bilinear, Nearest, build_upsampler

# exact ratio, odd sides, ratio 3.7, equal, guide smaller, one pixel
SIZES = [((2, 3), (4, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (3, 2))]


def maps(feature_size, guide_size, channels=4):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, channels, *feature_size, generator=generator, dtype=torch.float64)
    return feature, torch.full((2, 3, *guide_size), torch.nan, dtype=torch.float64)  # its values must not matter


def bilinear(x, i, j, size, align_corners):
    """One position of one map, by the distances to the four pixels around it."""
    taps = []
    for index, cells, count in ((i, x.shape[1], size[0]), (j, x.shape[2], size[1])):
        if align_corners:
            position = index * (cells - 1) / (count - 1) if count > 1 else 0.0
        else:
            position = max((index + 0.5) * cells / count - 0.5, 0)
        low = min(int(position), cells - 1)
        high = min(low + 1, cells - 1)
        taps.append(((low, 1 - (position - low)), (high, position - low)))
    return sum(x[:, r, c] * a * b for r, a in taps[0] for c, b in taps[1])


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_nearest_matches_definition(sizes):
    feature, guide = maps(*sizes)
    (h, w), (height, width) = sizes
    out = Nearest(4)(feature, guide)
    assert out.shape == (2, 4, height, width)
    for i in range(height):
        for j in range(width):
            assert torch.equal(out[..., i, j], feature[..., i * h // height, j * w // width])


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_bilinear_matches_definition(sizes, align_corners):
    feature, guide = maps(*sizes)
    out = Bilinear(4, align_corners=align_corners)(feature, guide)
    assert out.shape == (2, 4, *sizes[1])
    for i in range(sizes[1][0]):
        for j in range(sizes[1][1]):
            torch.testing.assert_close(out[0, :, i, j], bilinear(feature[0], i, j, sizes[1], align_corners))


@pytest.mark.parametrize('kind', [Nearest, Bilinear])
def test_gradcheck(kind):
    feature, guide = maps((4, 3), (7, 10))
    assert gradcheck(lambda x: kind(4)(x, guide), feature.requires_grad_())


@pytest.mark.parametrize('size', [(7, 9), (14, 18), (13, 17), (25, 40)], ids=str)
def test_baselines_of_the_parents(size):
    """Bit for bit what FPN and the segmentation heads do without an upsampler."""
    feature, guide = maps((7, 9), size)
    assert torch.equal(Nearest(4)(feature, guide), F.interpolate(feature, size=size, mode='nearest'))
    expected = F.interpolate(feature, size=size, mode='bilinear', align_corners=False)
    assert torch.equal(Bilinear(4)(feature, guide), expected)


@pytest.mark.parametrize('kind', ['Nearest', 'Bilinear'])
def test_build(kind):
    module = build_upsampler(dict(type=f'sapa_mm.{kind}'), 8, 6)
    assert not list(module.parameters()) and not module.needs_guide
    assert (module.in_channels, module.guide_channels, module.out_channels) == (8, 6, 8)
    with pytest.raises(TypeError, match=f"{kind} has no option 'scale_factor'"):  # the guide says it
        build_upsampler(dict(type=f'sapa_mm.{kind}', scale_factor=2), 8, 6)
