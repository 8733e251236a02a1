# SPDX-License-Identifier: Apache-2.0
"""A2U against its definition written as loops, its published sizes and layouts, and bad input."""

from math import ceil, floor

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

from sapa_mm.upsamplers import A2U

OPTIONS = [dict(), dict(share=False), dict(kernel_size=5, encoder_kernel=4), dict(encoder_kernel=5)]
# exact ratio, odd sides, ratio 3.7, equal, guide smaller
SIZES = [((2, 3), (4, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 4))]


def make(in_channels=3, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    module = A2U(in_channels, **{'guide_channels': 32, **options}).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.2, std=0.5)
    return module


def maps(feature_size, guide_size, channels=3, batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels, *feature_size, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(batch, 32, *guide_size, generator=generator, dtype=torch.float64).to(dtype),
    )


def definition(module, feature, guide):
    """One image; pooling, filtering, norm, affinity and mixing as loops."""
    feature, guide = feature[0], guide[0]
    channels, height, width = guide.shape
    side = module.encoder_kernel
    before = (side - 1) // 2
    low = ceil(height / 2), ceil(width / 2)

    def project(conv, x):
        return conv.weight.flatten(1) @ x + conv.bias

    def branch(layer, norm):
        filters = torch.zeros(channels, side, side, dtype=guide.dtype)
        for a in range(side):
            for b in range(side):
                rows = slice(floor(a * height / side), ceil((a + 1) * height / side))
                columns = slice(floor(b * width / side), ceil((b + 1) * width / side))
                filters[:, a, b] = project(layer[1], guide[:, rows, columns].mean((1, 2)))
        out = torch.zeros(channels, *low, dtype=guide.dtype)
        for i in range(low[0]):
            for j in range(low[1]):
                for a in range(side):
                    for b in range(side):
                        r, c = 2 * i + a - before, 2 * j + b - before
                        if 0 <= r < height and 0 <= c < width:
                            out[:, i, j] += filters[:, a, b] * guide[:, r, c]
        groups = out.view(32, -1)
        out = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        out = out.view_as(guide[:, : low[0], : low[1]]) * norm[0].weight[:, None, None] + norm[0].bias[:, None, None]
        return torch.where(out > 0, out, 0.01 * out)

    affinity = (branch(module.bconv_U, module.bnu) * branch(module.bconv_V, module.bnv)).sum(0) / channels**0.5
    coefficients = project(module.bconv_UP[1], guide.mean((1, 2)))
    out = torch.zeros(feature.shape[0], height, width, dtype=guide.dtype)
    k = module.kernel_size
    for i in range(height):
        for j in range(width):
            own = coefficients[i % 2 * 2 + j % 2 :: 4]
            weights = torch.sigmoid(own * affinity[i // 2, j // 2]).softmax(0)
            row, column = i * feature.shape[1] // height, j * feature.shape[2] // width
            for t in range(k**2):
                r, c = row + t // k - k // 2, column + t % k - k // 2
                if 0 <= r < feature.shape[1] and 0 <= c < feature.shape[2]:
                    out[:, i, j] += weights[t] * feature[:, r, c]
    return out[None]


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_matches_definition(options, sizes):
    module = make(**options)
    feature, guide = maps(*sizes)
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide))


def test_kernels_are_close_to_uniform():
    """Logits within (0, 1): no weight is more than e times another."""
    kernels = make().kernels(*maps((4, 3), (7, 6)))
    assert kernels.shape == (1, 9, 7, 6)
    torch.testing.assert_close(kernels.sum(1), torch.ones(1, 7, 6, dtype=torch.float64))
    ratio = kernels.amax(1) / kernels.amin(1)
    assert 1.5 < ratio.max() < torch.e


def test_downsampling_kernels():
    module = make(kernel_size=3, downsample=True)
    for size in ((8, 6), (7, 5)):
        _, guide = maps((4, 3), size)
        kernels = module.downsampling_kernels(guide)
        assert kernels.shape == (1, 36, 4, 3)
        expected = F.softmax(module.bconv_DP(guide) * module.affinity(guide), 1)
        torch.testing.assert_close(kernels, expected)
        torch.testing.assert_close(kernels.sum(1), torch.ones(1, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_gradcheck(options):
    module = make(2, **options)
    names = [name for name, _ in module.named_parameters()]

    def function(feature, guide, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (feature, guide))

    inputs = [x.detach().requires_grad_() for x in (*maps((3, 2), (5, 4), 2), *module.parameters())]
    assert gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize('share', [True, False])
def test_every_parameter_gets_a_gradient(share):
    torch.manual_seed(0)
    module = A2U(8, 32, share=share)  # as initialised
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), 8, batch=2, dtype=torch.float32))
    module(feature, guide).square().sum().backward()
    for name, x in (('feature', feature), ('guide', guide), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


@pytest.mark.parametrize('share', [True, False])
def test_bfloat16_autocast(share):
    torch.manual_seed(0)
    module = A2U(8, 32, share=share)
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), 8, dtype=torch.float32))
    expected = module(feature, guide)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = module(feature, guide)
    assert out.dtype == torch.bfloat16
    # Kernels near 1/9 change little with their logits; features and result are rounded to 2^-9 of their size.
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.02)
    out.float().square().sum().backward()
    for name, x in (('feature', feature), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


@pytest.mark.parametrize('c, k', [(256, 3), (64, 5)])
def test_parameter_count_formula(c, k):
    def count(**options):
        return sum(p.numel() for p in A2U(16, c, kernel_size=k, **options).parameters())

    coefficients = 4 * k**2 * (c + 1)
    assert count() == coefficients + 2 * (c + 1) + 4 * c
    assert count(share=False) == coefficients + 2 * c * (c + 1) + 4 * c
    assert count(downsample=True) == 2 * coefficients + 2 * (c + 1) + 4 * c
    if k == 3:
        assert count() == 42 * c + 38 and count(downsample=True) == 78 * c + 74
    if c == 256:
        assert (count(), count(downsample=True)) == (10_790, 20_042)


def assert_published_initialisation(module):
    for layer in (module.bconv_U[1], module.bconv_V[1], module.bconv_UP[1]):
        deviation = (2 / (1 + 0.01**2)) ** 0.5 * (2 / (layer.in_channels + layer.out_channels)) ** 0.5
        assert abs(layer.weight.std() / deviation - 1) < 0.05
        assert not layer.bias.any()
    for norm in (module.bnu[0], module.bnv[0]):
        assert (norm.weight == 1).all() and not norm.bias.any()


def test_initialisation():
    torch.manual_seed(0)
    module = A2U(256, share=False)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


@pytest.mark.parametrize('prefix', ['', 'kernel_gen.', 'upsamplers.0.kernel_gen.'])
@pytest.mark.parametrize('downsample', [True, False])
def test_loads_published_layouts(downsample, prefix):
    """With the downsampling branch or without it, where the module has none."""
    source = make(downsample=downsample)
    published = {prefix + name: x for name, x in source.state_dict().items()}
    assert f'{prefix}bconv_UP.1.weight' in published and f'{prefix}bnu.0.bias' in published
    for target in [make(seed=1)] + [make(seed=1, downsample=True)] * downsample:
        root = nn.ModuleDict(dict(upsamplers=nn.ModuleList([target]))) if prefix.startswith('up') else target
        root.load_state_dict(published, strict=True)
        inputs = maps((5, 3), (9, 6))
        assert torch.equal(target(*inputs), source(*inputs))


def test_a_missing_downsampling_branch_is_not_made_up():
    with pytest.raises(RuntimeError, match='Missing key.*bconv_DP.1.weight'):
        make(downsample=True).load_state_dict(make().state_dict())


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(in_channels=48), ValueError, 'guide_channels must be divisible by the 32 groups of the norms, got 48'),
        (dict(kernel_size=2), ValueError, 'kernel_size must be odd and between 1 and 15, got 2'),
        (dict(kernel_size=3.0), TypeError, 'kernel_size must be an int, got float'),
        (dict(encoder_kernel=0), ValueError, 'encoder_kernel must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        A2U(**{'in_channels': 32, **options})
