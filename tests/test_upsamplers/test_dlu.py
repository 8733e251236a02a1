# SPDX-License-Identifier: Apache-2.0
"""DLU against its definition written as loops, its published size, other sizes and bad input."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from upsampler_helpers import (
    assemble,
    at_all_positions,
    check_gradients,
    clamped,
    count_macs,
    count_parameters,
    maps,
    randomize,
)

from sapa_mm.ops import feature_assembly
from sapa_mm.upsamplers import DLU

OPTIONS = [dict(), dict(kernel_size=3, encoder_kernel=1), dict(scale_factor=3), dict(scale_factor=4, encoder_kernel=5)]


def make(**options):
    return randomize(DLU(4, **{'compressed_channels': 3, **options}), std=0.7)


def definition(module, feature):
    scale = module.scale_factor
    compressed = module.channel_compressor(feature)
    source = module.kernel_space_generator(compressed).softmax(1)[0]
    offset = module.conv_offset(compressed)[0]

    def position(i, j):
        row, column = i // scale, j // scale
        sub_pixel = i % scale * scale + j % scale
        x, y = offset[sub_pixel, row, column], offset[scale**2 + sub_pixel, row, column]
        return assemble(feature[0], clamped(source, row + y, column + x), row, column)

    return at_all_positions(feature.shape[1], [scale * side for side in feature.shape[2:]], position)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('size', [(3, 4), (1, 2)], ids=str)
def test_matches_definition(options, size):
    module = make(**options)
    feature, guide = maps(size, [module.scale_factor * side for side in size], (4, 2))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature))


@pytest.mark.parametrize('scale', [2, 3])
def test_odd_and_other_sizes(scale):
    module = make(scale_factor=scale)
    height, width = 3 * scale, 4 * scale
    feature, guide = maps((3, 4), (height, width), (4, 1))
    whole = module(feature, guide)
    odd = module(feature, guide[:, :, 1:, scale - 1 :])
    assert torch.equal(odd, whole[:, :, : height - 1, : width - scale + 1])
    for size in ((height + 5, width), (2, 3)):
        expected = F.interpolate(whole, size, mode='bilinear', align_corners=False)
        assert torch.equal(module(feature, guide.new_zeros(1, 1, *size)), expected)


def test_kernels_are_those_that_mix():
    module, (feature, guide) = make(), maps((3, 4), (5, 7), (4, 1))
    kernels = module.kernels(feature, guide)
    torch.testing.assert_close(kernels.sum(1), torch.ones_like(kernels[:, 0]))
    torch.testing.assert_close(feature_assembly(feature, kernels, 5), module(feature, guide))


def test_gradients():
    check_gradients(make(kernel_size=3), *maps((3, 2), (5, 4), (4, 1)))


@pytest.mark.parametrize(
    'c, m, e, k, s, count', [(256, 64, 3, 5, 2, 35_489), (256, 64, 3, 5, 4, 49_337), (8, 6, 5, 3, 3, None)]
)
def test_cost(c, m, e, k, s, count):
    module = DLU(c, scale_factor=s, kernel_size=k, encoder_kernel=e, compressed_channels=m)
    formula = c * m + m + (e**2 * m + 1) * (k**2 + 2 * s**2)
    assert count_parameters(module) == formula and count in (None, formula)
    macs = count_macs(module, *maps((4, 6), (4 * s, 6 * s), (c, 1), dtype=torch.float32))
    assert macs == 24 * (c * m + e**2 * m * (k**2 + 2 * s**2) + s**2 * k**2 * c)


def assert_published_initialisation(module):
    bound = (6 / (256 + 64)) ** 0.5
    assert 0.98 * bound < module.channel_compressor.weight.abs().max() <= bound
    assert 0.00095 < module.kernel_space_generator.weight.std() < 0.00105
    for x in (module.channel_compressor.bias, module.kernel_space_generator.bias, *module.conv_offset.parameters()):
        assert not x.any()


def test_initialisation():
    torch.manual_seed(0)
    module = DLU(256)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(kernel_size=4), ValueError, 'kernel_size must be odd and between 1 and 15, got 4'),
        (dict(kernel_size=5.0), TypeError, 'kernel_size must be an int, got float'),
        (dict(encoder_kernel=2), ValueError, 'encoder_kernel must be odd, got 2'),
        (dict(scale_factor=0), ValueError, 'scale_factor must be a positive integer, got 0'),
        (dict(compressed_channels=0), ValueError, 'compressed_channels must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        DLU(**{'in_channels': 8, **options})
