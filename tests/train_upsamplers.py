# SPDX-License-Identifier: Apache-2.0
"""One training step of every upsampler, with whatever is installed; torch is enough.

A script of its own, so that an installed package can be tried in an environment without pytest:
``tools/dev/check_install.sh``.
"""

import logging

import torch

import sapa_mm
from sapa_mm import (
    CARAFE,
    NAF,
    UPSAMPLERS,
    VARIANTS,
    CARAFEDownsample,
    ColourAffiliation,
    ImageGuidedUpsampler,
    JBUStack,
    build_upsampler,
)
from sapa_mm.registry import MODELS

logging.disable(logging.INFO)  # mmengine tells of each parameter that init_weights was called


def step(module, *inputs):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([*module.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    out = module(*inputs)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters()), type(module)
    optimizer.step()
    module.init_weights()
    return out


feature = torch.randn(2, 32, 5, 6)
guide = torch.randn(2, 32, 9, 12)
for name in UPSAMPLERS:
    for prefix in ('', 'sapa_mm.'):
        module = build_upsampler(dict(type=prefix + name), 32, 32)
    assert step(module, feature.clone().requires_grad_(), guide).shape == (2, 32, 9, 12)
    assert module.fuse(feature, guide).shape == (2, 32, 9, 12)
for cfg in VARIANTS.values():
    build_upsampler(cfg, 32, 32)

image = torch.rand(2, 3, 40, 48)
for module in (NAF(dim=32, num_heads=2), ColourAffiliation(), JBUStack(32)):
    step(module.eval(), feature.clone().requires_grad_(), image)
step(CARAFEDownsample(32), guide.clone().requires_grad_())
backbone = dict(type=torch.nn.Conv2d, in_channels=3, out_channels=8, kernel_size=8, stride=8)
assert ImageGuidedUpsampler(backbone, dict(type='sapa_mm.ColourAffiliation'))(image)[0].shape == (2, 8, 40, 48)
assert MODELS.get('sapa_mm.CARAFE') is MODELS.get('CARAFE') is CARAFE
print(f'trained {len(UPSAMPLERS)} upsamplers with {sapa_mm.ops.backend()} operators of {sapa_mm.__file__}')
