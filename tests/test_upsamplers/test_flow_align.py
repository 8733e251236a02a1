# SPDX-License-Identifier: Apache-2.0
"""Flow alignment against its definition written as loops, its published size, gradients and bad input."""

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

from sapa_mm.upsamplers import FlowAlign

GATES = [None, 'conv', 'pooled']


def make(gate, channels=(3, 3)):
    return randomize(FlowAlign(*channels, embed_dims=2, gate=gate), std=0.7)


def definition(module, feature, guide):
    """Flow and gate by torch, then one position at a time."""
    height, width = guide.shape[2:]
    t = F.interpolate(module.down_h(feature), (height, width), mode='bilinear', align_corners=True)
    both = torch.cat([t, module.down_l(guide)], 1)
    flow = module.flow_make(both)[0]

    def warped(x, flow, i, j):
        rows, columns = x.shape[1:]
        row = i * (rows - 1) / max(height - 1, 1) + flow[1, i, j] * (rows - 1) / (2 * height)
        column = j * (columns - 1) / max(width - 1, 1) + flow[0, i, j] * (columns - 1) / (2 * width)
        return bilinear(x, row, column)

    if module.gate == 'pooled':
        both = torch.stack([t.mean(1), guide.mean(1), t.amax(1), guide.amax(1)], 1)
    gate = None if module.gate is None else torch.sigmoid(module.flow_gate[0](both))[0, 0]

    def position(i, j):
        out = warped(feature[0], flow, i, j)
        return out if gate is None else gate[i, j] * out + (1 - gate[i, j]) * warped(guide[0], flow[2:], i, j)

    return at_all_positions(feature.shape[1], (height, width), position)


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('gate', GATES)
def test_matches_definition(gate, sizes):
    channels = (3, 2) if gate is None else (3, 3)
    module, (feature, guide) = make(gate, channels), maps(*sizes, channels)
    with torch.no_grad():
        expected = definition(module, feature, guide)
        torch.testing.assert_close(module(feature, guide), expected)
        positions = module.positions(feature, guide)
        assert positions.shape == (1, 1, 2, *sizes[1])
        if gate is None:
            x, y = positions[0, 0]
            sampled = at_all_positions(3, sizes[1], lambda i, j: bilinear(feature[0], y[i, j], x[i, j]))
            torch.testing.assert_close(sampled, expected)


@pytest.mark.parametrize('gate', GATES)
def test_a_gate_replaces_the_sum(gate):
    module, (feature, guide) = make(gate), maps((4, 3), (8, 6), (3, 3))
    out, fused = module(feature, guide), module.fuse(feature, guide)
    assert torch.equal(fused, guide + out if gate is None else out)


@pytest.mark.parametrize('gate', GATES)
def test_gradients(gate):
    check_gradients(make(gate), *maps((3, 2), (5, 4), (3, 3)))


@pytest.mark.parametrize('x, y, m', [(256, 256, 128), (8, 8, 6)])
def test_cost(x, y, m):
    added = {None: 0, 'conv': 54 * m, 'pooled': 36 * m + 36}
    more_macs = {None: 0, 'conv': 216 * m + 20 * y, 'pooled': 144 * m + 144 + 20 * y}
    for gate in GATES:
        module = FlowAlign(x, y, embed_dims=m, gate=gate)
        assert count_parameters(module) == m * (x + y) + 36 * m + added[gate]
        macs = count_macs(module, *maps((4, 6), (8, 12), (x, y), dtype=torch.float32))
        assert macs == 24 * (x * m + 4 * y * m + 144 * m + 20 * x + more_macs[gate])
    if x == 256:
        counts = [count_parameters(FlowAlign(x, gate=gate)) for gate in GATES]
        assert counts == [70_144, 77_056, 74_788]


def test_initialisation():
    torch.manual_seed(0)
    module = FlowAlign(256, gate='conv')
    for _ in range(2):
        for conv in (module.down_h, module.down_l, module.flow_make, module.flow_gate[0]):
            bound = conv.weight[0].numel() ** -0.5  # torch's own rule
            assert 0.95 * bound < conv.weight.abs().max() <= bound
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 1, 2)
        module.init_weights()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(gate='sigmoid'), r"gate must be one of \(None, 'conv', 'pooled'\), got 'sigmoid'"),
        (dict(gate='conv', guide_channels=6), 'same number of channels, got 6 and 8'),
        (dict(embed_dims=0), 'embed_dims must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FlowAlign(**{'in_channels': 8, **options})
