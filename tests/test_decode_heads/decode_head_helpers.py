# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the decode heads."""

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = [8, 12, 16, 20]


def levels(height=33, width=47, channels=CHANNELS):
    """Sizes halved and rounded up: 33x47, 17x24, 9x12, 5x6."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, c, -(-height // 2**i), -(-width // 2**i), generator=generator) for i, c in enumerate(channels)
    ]


def randomize(module):
    """Other values than any initialisation has, running statistics too."""
    for x in module.state_dict().values():
        if x.is_floating_point():
            x.uniform_(0.1, 1).mul_(torch.randint(0, 2, x.shape) * 2 - 1 if x.dim() > 1 else 1)
    return module


class Bilinear(nn.Module):
    """The parents' step in the shape of an upsampler."""

    def forward(self, feature, guide):
        return F.interpolate(feature, size=guide.shape[2:], mode='bilinear', align_corners=False)

    def fuse(self, feature, guide):
        return guide + self(feature, guide)
