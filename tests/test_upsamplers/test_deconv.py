# SPDX-License-Identifier: Apache-2.0
"""Deconv against its definition written as loops, its published size and layout, and bad input."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

from sapa_mm.upsamplers import Deconv


def maps(size, guide_size, channels=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, *size, generator=generator, dtype=dtype), torch.zeros(2, 3, *guide_size)


def definition(module, feature):
    """``out[s i + a - p] += W[a]^T x[i]``, one position and tap at a time, for ``s`` times the size."""
    scale, weight = module.scale_factor, module.conv.weight
    kernel_size = weight.shape[2]
    padding = (kernel_size - scale + 1) // 2
    _, _, h, w = feature.shape
    out = module.conv.bias[:, None, None].repeat(feature.shape[0], 1, scale * h, scale * w)
    for i in range(h):
        for j in range(w):
            for a in range(kernel_size):
                for b in range(kernel_size):
                    y, x = scale * i + a - padding, scale * j + b - padding
                    if 0 <= y < scale * h and 0 <= x < scale * w:
                        out[:, :, y, x] = out[:, :, y, x] + feature[:, :, i, j] @ weight[:, :, a, b]
    return out


@pytest.mark.parametrize('kernel_size, scale', [(3, 2), (2, 2), (4, 2), (5, 2), (3, 3), (5, 3), (4, 4), (7, 4)])
def test_matches_definition(kernel_size, scale):
    torch.manual_seed(0)
    module = Deconv(4, out_channels=5, scale_factor=scale, kernel_size=kernel_size).double()
    feature, guide = maps((3, 4), (3 * scale, 4 * scale))
    torch.testing.assert_close(module(feature, guide), definition(module, feature))


@pytest.mark.parametrize('scale', [2, 3])
def test_odd_and_other_sizes(scale):
    torch.manual_seed(0)
    module = Deconv(4, scale_factor=scale).double()
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
    module = Deconv(2, out_channels=3).double()
    feature, guide = maps((3, 2), (5, 4), channels=2)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (x, guide))

    assert gradcheck(function, (feature.requires_grad_(), *module.parameters()))


@pytest.mark.parametrize(
    'channels, options, count',
    [
        (256, {}, 9 * 256**2 + 256),
        (512, {}, 9 * 512**2 + 512),
        (6, dict(out_channels=4, kernel_size=5), 25 * 6 * 4 + 4),
    ],
)
def test_parameter_count(channels, options, count):
    assert sum(p.numel() for p in Deconv(channels, **options).parameters()) == count


def test_initialisation_is_torch_s():
    torch.manual_seed(0)
    module = Deconv(32)
    torch.manual_seed(0)
    expected = nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1, output_padding=1)
    assert torch.equal(module.conv.weight, expected.weight) and torch.equal(module.conv.bias, expected.bias)
    nn.init.ones_(module.conv.weight)
    torch.manual_seed(0)
    module.init_weights()
    assert torch.equal(module.conv.weight, expected.weight)


@pytest.mark.parametrize('prefix', ['', 'neck.upsamplers.1.'])
def test_loads_the_published_layout(prefix):
    """A plain transposed convolution, whose keys stand where this module's prefix is."""
    torch.manual_seed(0)
    published = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1).double()
    module = Deconv(4).double()
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
        (dict(kernel_size=1), 'scale_factor must be at least 2 and .* got scale_factor=2 and kernel_size=1'),
        (dict(scale_factor=4), 'scale_factor must be at least 2 and .* got scale_factor=4 and kernel_size=3'),
        (dict(scale_factor=1), 'got scale_factor=1 and kernel_size=3'),
        (dict(scale_factor=0), 'scale_factor must be a positive integer, got 0'),
        (dict(scale_factor=2.0), 'scale_factor must be a positive integer, got 2.0'),
        (dict(kernel_size='3'), "kernel_size must be a positive integer, got '3'"),
        (dict(out_channels=0), 'out_channels must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Deconv(**{'in_channels': 4, **options})
