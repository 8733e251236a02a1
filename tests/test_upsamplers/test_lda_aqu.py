# SPDX-License-Identifier: Apache-2.0
"""LDA-AQU against its definition written as loops, its published size and layout, gradients and bad input."""

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

from sapa_mm.ops import deformable_assembly
from sapa_mm.upsamplers import LDAAQU

OPTIONS = [
    dict(),
    dict(num_heads=2),
    dict(num_heads=3, groups=2),
    dict(num_heads=2, groups=4, kernel_size=5, encoder_kernel=1),
    dict(num_heads=4, groups=1, position_bias=False, offset_range=2),
    dict(reduction_factor=1, groups=3),
]


def make(channels=24, **options):
    module = randomize(LDAAQU(channels, **{'reduction_factor': 2, **options}))
    for parameter in module.conv_offset.parameters():
        parameter.data *= 0.3  # offsets of a few positions, not all at the end of the range
    return module


def definition(module, feature, size):
    """Query, key and offsets by torch, then one position, head, group and point at a time."""
    x = F.layer_norm(feature.movedim(1, 3), feature.shape[1:2], *module.layer_norm.parameters()).movedim(3, 1)
    query = F.interpolate(module.proj_q(x), size, mode='bilinear', align_corners=True)
    key = module.proj_k(x)[0]
    groups, heads, side = module.groups, module.num_heads, module.kernel_size
    points, dims, channels = side**2, query.shape[1], feature.shape[1]
    depthwise, norm, gelu, predict = module.conv_offset
    moves = []
    for part in query.chunk(groups, 1):
        part = depthwise(part).movedim(1, 3)
        part = F.layer_norm(part, part.shape[3:], norm.weight, norm.bias).movedim(3, 1)
        moves.append(module.offset_range * predict(gelu(part))[0].tanh().unflatten(0, (points, 2)))
    (h, w), (height, width) = feature.shape[2:], size
    rows, columns = (h - 1) / max(height - 1, 1), (w - 1) / max(width - 1, 1)

    def position(i, j):
        keys, values = [], []
        for move in moves:
            places = [
                (
                    (i + move[t, 0, i, j] + t // side - side // 2) * rows,
                    (j + move[t, 1, i, j] + t % side - side // 2) * columns,
                )
                for t in range(points)
            ]
            keys.append([bilinear(key, *place) for place in places])
            values.append([bilinear(feature[0], *place) for place in places])
        out = torch.zeros(channels, dtype=torch.float64)
        for head in range(heads):
            scores = torch.zeros(points, dtype=torch.float64)
            for d in range(head * dims // heads, (head + 1) * dims // heads):
                for t in range(points):
                    k = keys[d // (dims // groups)][t][d]
                    if module.relative_position_bias_table is not None:
                        k = k + module.relative_position_bias_table[0, head, 0, t, d % (dims // heads)]
                    scores[t] += query[0, d, i, j] * k
            weights = (scores * (dims // heads) ** -0.5).softmax(0)
            for c in range(head * channels // heads, (head + 1) * channels // heads):
                for t in range(points):
                    out[c] += weights[t] * values[c // (channels // groups)][t][c]
        return out

    return at_all_positions(channels, size, position)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_matches_definition(options):
    module, (feature, guide) = make(**options), maps((3, 4), (6, 7), (24, 1))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, (6, 7)))


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_any_size_matches_definition(sizes):
    module, (feature, guide) = make(8, kernel_size=1), maps(*sizes, (8, 1))
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, sizes[1]))


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_kernels_and_positions_are_those_that_mix(options):
    module, (feature, guide) = make(**options), maps((3, 4), (6, 7), (24, 1))
    kernels, positions = module.kernels(feature, guide), module.positions(feature, guide)
    torch.testing.assert_close(kernels.sum(2), torch.ones_like(kernels[:, :, 0]))
    cell = torch.stack(torch.meshgrid(torch.arange(7) * 4 // 7, torch.arange(6) * 3 // 6, indexing='xy'))
    offset = (positions - cell).flatten(1, 3)
    out = deformable_assembly(feature, kernels.flatten(1, 2), offset, kernels.shape[1])
    torch.testing.assert_close(out, module(feature, guide))


@pytest.mark.parametrize('options', [dict(groups=1), dict(num_heads=2, position_bias=False)], ids=str)
def test_gradients(options):
    check_gradients(make(8, **options), *maps((3, 2), (4, 3), (8, 1)))


@pytest.mark.parametrize('c, r, k, e, g', [(256, 4, 3, 3, 2), (24, 2, 5, 1, 3)])
def test_cost(c, r, k, e, g):
    module = LDAAQU(c, reduction_factor=r, kernel_size=k, encoder_kernel=e, groups=g)
    d = c // r
    without = 2 * c * d + 2 * c + 11 * d // g + 2 * k**2 * (e**2 * d // g + 1)
    assert count_parameters(module) == without + k**2 * d
    assert count_parameters(LDAAQU(c, None, r, 1, k, e, g, position_bias=False)) == without
    if c == 256:
        assert count_parameters(module) == count_parameters(LDAAQU(c, num_heads=2)) == 39_410 and without == 38_834
    macs = count_macs(module, *maps((4, 6), (8, 12), (c, 1), dtype=torch.float32))
    sampling = 16 * k**2 * (d + c)
    assert macs == 24 * (2 * c * d + 36 * d + 8 * k**2 * e**2 * d + 4 * k**2 * (2 * d + c) + sampling)


def assert_published_initialisation(module):
    for conv in (module.proj_q, module.proj_k, module.conv_offset[0]):
        fan_out, fan_in = (n * conv.weight[0, 0].numel() for n in conv.weight.shape[:2])
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < conv.weight.abs().max() <= bound
    assert not any(p.any() for p in module.conv_offset[3].parameters())
    assert 0.018 < module.relative_position_bias_table.std() < 0.022
    for norm in (module.layer_norm, module.conv_offset[1]):
        assert (norm.weight == 1).all() and not norm.bias.any()


def test_initialisation():
    torch.manual_seed(0)
    module = LDAAQU(256)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


@pytest.mark.parametrize('prefix', ['', 'neck.upsamplers.1.'])
def test_loads_published_layout(prefix):
    source, target = make(), randomize(LDAAQU(24, reduction_factor=2), seed=1)
    published = {
        prefix + name.replace('layer_norm.', 'layer_norm.norm.').replace('offset.1.', 'offset.1.norm.'): x
        for name, x in source.state_dict().items()
    }
    root = target
    for part in reversed(prefix.split('.')[:-1]):
        parent = nn.Module()
        parent.add_module(part, root)
        root = parent
    root.load_state_dict(published, strict=True)
    inputs = maps((3, 4), (6, 7), (24, 1))
    assert torch.equal(target(*inputs), source(*inputs))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(kernel_size=2), 'kernel_size must be odd, got 2'),
        (dict(encoder_kernel=4), 'encoder_kernel must be odd, got 4'),
        (dict(groups=0), 'groups must be a positive integer, got 0'),
        (dict(num_heads=3), r'num_heads must divide .*, got 3 for 16 and 16 // 4 = 4'),
        (dict(groups=8), r'groups must divide .*, got 8 for 16 and 16 // 4 = 4'),
        (dict(reduction_factor=32), r'groups must divide .*, got 2 for 16 and 16 // 32 = 0'),
        (dict(offset_range=0), 'offset_range must be positive, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LDAAQU(**{'in_channels': 16, **options})
