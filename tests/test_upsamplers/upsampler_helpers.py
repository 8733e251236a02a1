# SPDX-License-Identifier: Apache-2.0
"""What the tests of single upsamplers share."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sapa_mm.ops import backend

# exact ratio, odd sides, ratio 3.7, equal, guide smaller, one pixel
SIZES = [((4, 3), (8, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (3, 2))]


def maps(feature_size, guide_size, channels, batch=1, dtype=torch.float64):
    """A feature and a guide of ``channels``, a pair."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(batch, c, *size, generator=generator, dtype=torch.float64).to(dtype)
        for c, size in zip(channels, (feature_size, guide_size))
    )


def randomize(module, std=0.4, seed=0):
    """In float64, parameters large enough that kernels and offsets are far from those of a fresh module."""
    torch.manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, mean=0.1, std=std)
    return module


def check_gradients(module, feature, guide, fast_mode=False):
    """Analytic against numeric gradients, of the inputs whose values count and of every parameter.

    In fast mode, along random directions: for modules of thousands of parameters.
    """
    names = [name for name, _ in module.named_parameters()]

    def function(feature, guide, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (feature, guide))

    guide = guide.requires_grad_(module.needs_guide)
    assert gradcheck(function, (feature.requires_grad_(), guide, *module.parameters()), fast_mode=fast_mode)


def count_parameters(module):
    return sum(p.numel() for p in module.parameters())


def count_macs(function, *inputs):
    """Multiply-accumulates of convolutions and of this package's operators."""
    if backend() != 'native':
        pytest.skip('the reference does other products: formulas are those of the compiled operators')
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() // 2


def bilinear(x, row, column):
    """Bilinear sample of ``(C, h, w)``, zeros outside."""
    out = torch.zeros(len(x), dtype=x.dtype)
    top, left = int(torch.as_tensor(row).floor()), int(torch.as_tensor(column).floor())
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                out = out + (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return out


def clamped(x, row, column):
    """Bilinear sample of ``(C, h, w)`` at a position clamped to the map."""
    return bilinear(x, min(max(float(row), 0), x.shape[1] - 1), min(max(float(column), 0), x.shape[2] - 1))


def assemble(x, kernel, row, column):
    """Window of ``(C, h, w)`` around a position times ``kernel``, ``(K*K,)``, zeros outside."""
    side = round(len(kernel) ** 0.5)
    window = F.pad(x, (side // 2,) * 4)[:, row : row + side, column : column + side]
    return window.flatten(1) @ kernel


def at_all_positions(channels, size, function):
    """``(1, channels, H, W)`` of what ``function(i, j)`` gives at each position."""
    out = torch.zeros(1, channels, *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            out[0, :, i, j] = function(i, j)
    return out
