# SPDX-License-Identifier: Apache-2.0
"""Image-guided upsamplers: published sizes, other sizes, training, and inside a backbone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from upsampler_helpers import count_parameters, maps, randomize

from sapa_mm.backbones import ImageGuidedUpsampler
from sapa_mm.registry import MODELS
from sapa_mm.upsamplers import NAF, CARAFEStack, ColourAffiliation, JBUStack, SAPAStack
from sapa_mm.upsamplers.image_guided import JBUStep

STACKS = [SAPAStack, JBUStack, CARAFEStack]


@pytest.mark.parametrize(
    'module, count',
    [
        (lambda: SAPAStack(256), 68_888),
        (lambda: JBUStep(), 6_233),
        (lambda: JBUStack(256), 90_724),
        (lambda: CARAFEStack(256), 148_880),
        (lambda: NAF(), 662_528),
        (lambda: ColourAffiliation(), 0),
    ],
)
def test_parameter_count(module, count):
    assert count_parameters(module()) == count


@pytest.mark.parametrize('kind', STACKS)
def test_stacks_take_images_of_any_size(kind):
    torch.manual_seed(0)
    module = kind(4)
    feature, image = maps((1, 3), (37, 50), (4, 3), batch=2, dtype=torch.float32)
    out = module(feature, image.requires_grad_())
    assert out.shape == (2, 4, 16, 48) and out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert (image.grad is None) == (kind is CARAFEStack)
    assert module(feature[:0], image[:0]).shape == (0, 4, 16, 48)


def test_jbu_is_plain_at_a_constant_image_but_for_the_fixup():
    """With no colours to tell apart and no fixup, kernels are the spatial Gaussian."""
    step = randomize(JBUStep())
    for parameter in step.fixup_proj[3].parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(step.sigma_spatial)
    kernels = step.eval().kernels(torch.ones(1, 3, 4, 5, dtype=torch.float64))
    axis = torch.linspace(-1, 1, 7, dtype=torch.float64)
    expected = (-(axis[:, None] ** 2 + axis**2) / 2).exp().flatten()
    torch.testing.assert_close(kernels[0, :, 2, 3], expected / expected.sum())


@pytest.mark.parametrize('size', [None, (12, 20), (7, 5)])
def test_naf_any_size(size):
    torch.manual_seed(0)
    module = NAF(dim=32, kernel_size=3)
    feature, image = maps((2, 5), (13, 22), (8, 3), batch=2, dtype=torch.float32)
    out = module(feature, image, size)
    assert out.shape == (2, 8, *(size or (13, 22))) and out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    expected = module.eval()(feature, image, size)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        # rounded to 2^-9 of their size: queries and keys, whose weights mix values of up to 3
        torch.testing.assert_close(module(feature, image, size).float(), expected, rtol=0, atol=0.05)
    assert module(feature[:0], image[:0], size).shape[0] == 0


def test_naf_draws_its_coordinates_anew_in_training():
    torch.manual_seed(0)
    module = NAF(dim=32, kernel_size=3)
    inputs = maps((3, 4), (12, 16), (8, 3), dtype=torch.float32)
    assert not torch.equal(module(*inputs), module(*inputs))
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))


def test_colour_affiliation_follows_the_edge_of_the_image():
    """Two halves of different colours, the edge inside a column of cells: each side keeps the value of its colour."""
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, :, :6] = 1
    feature = F.adaptive_avg_pool2d(image[:, :1], 4)
    out = ColourAffiliation(temperature=20)(feature, image)
    assert out.shape == (1, 1, 16, 16)
    assert out[..., :6].min() > 0.9 and out[..., 6:].max() < 0.1
    bilinear = F.interpolate(feature, (16, 16), mode='bilinear')
    assert bilinear[..., :6].min() < 0.7
    constant = ColourAffiliation()(torch.ones(1, 2, 3, 3), image)
    torch.testing.assert_close(constant, torch.ones_like(constant))


@MODELS.register_module()
class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, image):
        return (self.conv(image),)


@pytest.mark.parametrize('frozen', [False, True])
def test_around_a_backbone(frozen):
    cfg = dict(
        type='sapa_mm.ImageGuidedUpsampler',
        backbone=dict(type='sapa_mm.Patches'),
        upsampler=dict(type='sapa_mm.NAF', dim=32, kernel_size=3),
        stride=2,
        frozen=frozen,
    )
    module = MODELS.build(cfg).train()
    (out,) = module(torch.randn(1, 3, 33, 48))
    assert out.shape == (1, 8, 17, 24)
    out.sum().backward()
    assert (module.backbone.conv.weight.grad is None) == frozen and module.backbone.training != frozen


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: NAF(dim=24), 'dim must be divisible by 16 and by 4 . num_heads, got 24 and 4'),
        (lambda: NAF(kernel_size=4), 'kernel_size must be odd, got 4'),
        (lambda: NAF(rope_rescale=0.5), 'rope_rescale at least 1, got 100 and 0.5'),
        (lambda: NAF(32)(torch.zeros(1, 6, 2, 2), torch.zeros(1, 3, 4, 4)), 'divisible by 4 heads, got 6'),
        (lambda: SAPAStack(0), 'in_channels must be a positive integer, got 0'),
        (lambda: JBUStep(radius=0), 'radius must be a positive integer, got 0'),
        (lambda: JBUStack(4)(torch.zeros(1, 5, 2, 2), torch.zeros(1, 3, 4, 4)), r'feature must be \(N, 4, H, W\)'),
        (lambda: JBUStack(4)(torch.zeros(1, 4, 2, 2), torch.zeros(2, 3, 4, 4)), 'one batch size, got 1 and 2'),
        (lambda: ColourAffiliation(temperature=0), 'temperature must be positive .* got 0'),
        (
            lambda: ColourAffiliation()(torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 4, 4)),
            r'image must be \(N, 3, H, W\)',
        ),
        (lambda: ImageGuidedUpsampler({}, {}, stride=0), 'stride must be a positive integer or None, got 0'),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
