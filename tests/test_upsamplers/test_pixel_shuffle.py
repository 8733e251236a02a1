# SPDX-License-Identifier: Apache-2.0
"""PixelShuffle against its definition, its published size and layout, and bad input."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

from sapa_mm.upsamplers import PixelShuffle


def maps(size, guide_size, channels=4):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    return feature, torch.zeros(2, 3, *guide_size)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('scale', [1, 2, 3])
def test_matches_definition(scale, kernel_size):
    """Sub-pixel (a, b) of channel c is output a * s + b of the c-th s * s outputs of the convolution."""
    torch.manual_seed(0)
    module = PixelShuffle(4, out_channels=5, scale_factor=scale, kernel_size=kernel_size).double()
    feature, guide = maps((3, 4), (3 * scale, 4 * scale))
    out = module(feature, guide)
    windows = F.unfold(feature, kernel_size, padding=kernel_size // 2).view(2, -1, 3, 4)
    for c in range(5):
        for a in range(scale):
            for b in range(scale):
                n = c * scale**2 + a * scale + b
                expected = torch.einsum('nkhw,k->nhw', windows, module.conv.weight[n].flatten()) + module.conv.bias[n]
                torch.testing.assert_close(out[:, c, a::scale, b::scale], expected)


@pytest.mark.parametrize('scale', [2, 3])
def test_odd_and_other_sizes(scale):
    torch.manual_seed(0)
    module = PixelShuffle(4, scale_factor=scale).double()
    height, width = 3 * scale, 4 * scale
    feature, _ = maps((3, 4), (1, 1))
    whole = module(feature, torch.zeros(2, 1, height, width))
    odd = module(feature, torch.zeros(2, 1, height - 1, width - scale + 1))
    assert torch.equal(odd, whole[:, :, : height - 1, : width - scale + 1])
    for size in ((height + 5, width), (2, 3)):
        expected = F.interpolate(whole, size, mode='bilinear', align_corners=False)
        assert torch.equal(module(feature, torch.zeros(2, 1, *size)), expected)


def test_gradcheck():
    torch.manual_seed(0)
    module = PixelShuffle(2, out_channels=3).double()
    feature, guide = maps((3, 2), (5, 4), channels=2)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (x, guide))

    assert gradcheck(function, (feature.requires_grad_(), *module.parameters()))


@pytest.mark.parametrize(
    'channels, options, count',
    [
        (256, {}, 36 * 256**2 + 4 * 256),
        (512, {}, 36 * 512**2 + 4 * 512),
        (6, dict(out_channels=4, kernel_size=1, scale_factor=3), 9 * 4 * (6 + 1)),
    ],
)
def test_parameter_count(channels, options, count):
    assert sum(p.numel() for p in PixelShuffle(channels, **options).parameters()) == count


def test_initialisation_is_torch_s():
    torch.manual_seed(0)
    module = PixelShuffle(32)
    torch.manual_seed(0)
    expected = nn.Conv2d(32, 128, 3, padding=1)
    assert torch.equal(module.conv.weight, expected.weight) and torch.equal(module.conv.bias, expected.bias)
    nn.init.ones_(module.conv.weight)
    torch.manual_seed(0)
    module.init_weights()
    assert torch.equal(module.conv.weight, expected.weight)


@pytest.mark.parametrize('prefix', ['', 'neck.upsamplers.1.'])
def test_loads_the_published_layout(prefix):
    """A convolution followed by nn.PixelShuffle, in an nn.Sequential."""
    torch.manual_seed(0)
    published = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2)).double()
    module = PixelShuffle(4).double()
    root = module
    for part in reversed(prefix.split('.')[:-1]):
        parent = nn.Module()
        parent.add_module(part, root)
        root = parent
    root.load_state_dict({prefix + name: x for name, x in published.state_dict().items()}, strict=True)
    feature, guide = maps((3, 4), (6, 8))
    assert torch.equal(module(feature, guide), published(feature))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(kernel_size=2), 'kernel_size must be odd, got 2'),
        (dict(kernel_size=0), 'kernel_size must be a positive integer, got 0'),
        (dict(scale_factor=-2), 'scale_factor must be a positive integer, got -2'),
        (dict(scale_factor=True), 'scale_factor must be a positive integer, got True'),
        (dict(out_channels=0), 'out_channels must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PixelShuffle(**{'in_channels': 4, **options})
