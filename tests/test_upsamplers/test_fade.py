# SPDX-License-Identifier: Apache-2.0
"""FADE and FADE-Lite against their definition written as loops, their published sizes and layouts, and bad input."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from sapa_mm.upsamplers import FADE, FADELite

# exact ratio, odd sides, ratio 3.7, equal, guide smaller, one pixel
SIZES = [((2, 3), (4, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (3, 2))]


@pytest.fixture(params=[FADE, FADELite])
def kind(request):
    return request.param


def make(kind, channels=(3, 3), dtype=torch.float64, seed=0, **options):
    """Weights large enough that kernels are far from uniform."""
    torch.manual_seed(seed)
    if kind is FADE:
        options.setdefault('embed_dims', 3)
    module = kind(*channels, **{'kernel_size': 3, **options}).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.4)
    return module


def maps(feature_size, guide_size, channels=(3, 3), batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels[0], *feature_size, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(batch, channels[1], *guide_size, generator=generator, dtype=torch.float64).to(dtype),
    )


def convolve(x, conv):
    """3x3 with zeros around, one position at a time, dense or depthwise."""
    _, h, w = x.shape
    out = torch.zeros(conv.out_channels, h, w, dtype=x.dtype)
    for i in range(h):
        for j in range(w):
            total = conv.bias.clone()
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if 0 <= i + a < h and 0 <= j + b < w:
                        weight = conv.weight[:, :, a + 1, b + 1]
                        here = x[:, i + a, j + b]
                        total += weight[:, 0] * here if conv.groups > 1 else weight @ here
            out[:, i, j] = total
    return out


def definition(module, feature, guide):
    generator = module.ker_generator
    from_guide = convolve(generator.compressor_en(guide)[0], generator.content_encoder)
    from_feature = convolve(generator.compressor_de(feature)[0], generator.content_encoder)
    h, w = feature.shape[2:]
    height, width = guide.shape[2:]
    side = module.kernel_size
    out = torch.zeros(module.in_channels, height, width, dtype=feature.dtype)
    for i in range(height):
        for j in range(width):
            row, column = i * h // height, j * w // width
            weights = (from_guide[:, i, j] + from_feature[:, row, column]).softmax(0)
            for t in range(side**2):
                r, c = row + t // side - side // 2, column + t % side - side // 2
                if 0 <= r < h and 0 <= c < w:
                    out[:, i, j] += weights[t] * feature[0, :, r, c]
            if hasattr(module, 'gate_generator'):
                conv = module.gate_generator.conv
                gate = torch.sigmoid(conv.weight.flatten() @ feature[0, :, row, column] + conv.bias)
                out[:, i, j] = gate * guide[0, :, i, j] + (1 - gate) * out[:, i, j]
    return out[None]


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('gating', [True, False], ids=['gate', 'no-gate'])
def test_matches_definition(kind, gating, sizes):
    channels = (3, 3) if gating else (3, 2)
    module = make(kind, channels, gating=gating)
    feature, guide = maps(*sizes, channels)
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide))


def test_kernels_sum_to_one(kind):
    kernels = make(kind, kernel_size=5).kernels(*maps((3, 4), (7, 6)))
    assert kernels.shape == (1, 25, 7, 6)
    torch.testing.assert_close(kernels.sum(1), torch.ones(1, 7, 6, dtype=torch.float64))


@pytest.mark.parametrize('gating', [True, False], ids=['gate', 'no-gate'])
def test_gradcheck(kind, gating):
    channels = (2, 2) if gating else (2, 3)
    module = make(kind, channels, gating=gating)
    names = [name for name, _ in module.named_parameters()]

    def function(feature, guide, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (feature, guide))

    inputs = [x.detach().requires_grad_() for x in (*maps((3, 2), (5, 4), channels), *module.parameters())]
    assert gradcheck(function, inputs)


def test_every_parameter_gets_a_gradient(kind):
    torch.manual_seed(0)
    module = kind(16)  # as initialised
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), (16, 16), batch=2, dtype=torch.float32))
    module(feature, guide).square().sum().backward()
    for name, x in (('feature', feature), ('guide', guide), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


def test_bfloat16_autocast(kind):
    module = make(kind, (32, 32), torch.float32)
    for parameter in module.parameters():
        parameter.data *= 0.3
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), (32, 32), dtype=torch.float32))
    expected = module(feature, guide)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = module(feature, guide)
    # Kernels and mixed features are rounded to 2^-9 of their size each.
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.04)
    out.float().square().sum().backward()
    for name, x in (('feature', feature), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


@pytest.mark.parametrize('x, y, k, e', [(256, 256, 5, 64), (6, 9, 3, 5)])
def test_parameter_count_formula(x, y, k, e):
    def count(kind, *channels, **options):
        return sum(p.numel() for p in kind(*channels, kernel_size=k, **options).parameters())

    assert count(FADE, x, y, embed_dims=e, gating=False) == e * (x + y + 1) + 9 * e * k**2 + k**2
    assert count(FADE, x, embed_dims=e) == 2 * x * e + e + e * 9 * k**2 + k**2 + x + 1
    assert count(FADELite, x, y, gating=False) == k**2 * (x + y + 11)
    assert count(FADELite, x) == 2 * x * k**2 + k**2 + 9 * k**2 + k**2 + x + 1
    if x == 256:
        assert (count(FADE, x), count(FADELite, x)) == (47_514, 13_332)


def assert_published_initialisation(module):
    for name, parameter in module.named_parameters():
        if name.endswith('bias'):
            assert not parameter.any(), name
        else:
            fan_out, fan_in = (n * parameter[0, 0].numel() for n in parameter.shape[:2])
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound and parameter.mean().abs() < 0.2 * bound, name


def test_initialisation(kind):
    torch.manual_seed(0)
    module = kind(256)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


H2L = {
    'ker_generator.compressor_en.': 'kernel_generator.conv1_en.',
    'ker_generator.compressor_de.': 'kernel_generator.conv1_de.',
    'ker_generator.content_encoder.weight': 'kernel_generator.conv2_kernels',
    'ker_generator.content_encoder.bias': 'kernel_generator.conv2_bias',
}
# The logs print no name for the last two; any will do.
LOG = {
    'gate_generator.': 'selector.',
    'ker_generator.compressor_en.': 'up.conv1_g.',
    'ker_generator.compressor_de.': 'up.conv1_x.',
    'ker_generator.content_encoder.weight': 'up.kernels',
    'ker_generator.content_encoder.bias': 'up.shift',
}
LITE_LOG = {
    'ker_generator.compressor_en.': 'ker_generator.conv.compressor_en.',
    'ker_generator.compressor_de.': 'ker_generator.conv.compressor_de.',
    'ker_generator.content_encoder.weight': 'ker_generator.conv.kernels',
    'ker_generator.content_encoder.bias': 'ker_generator.conv.shift',
}


@pytest.mark.parametrize('prefix', ['', 'decode_head.upsamplers.3.'])
@pytest.mark.parametrize(
    'kind, layout',
    [(FADE, {}), (FADE, H2L), (FADE, LOG), (FADELite, {}), (FADELite, LITE_LOG)],
    ids=['own', 'H2L', 'log', 'lite', 'lite-log'],
)
def test_loads_published_layouts(kind, layout, prefix):
    source, target = make(kind), make(kind, seed=1)
    published = {}
    for name, x in source.state_dict().items():
        for ours, theirs in layout.items():
            name = theirs + name[len(ours) :] if name.startswith(ours) else name
        published[prefix + name] = x
    assert all(any(key.startswith(prefix + theirs) for key in published) for theirs in layout.values())
    names = list(published)
    root = target
    for part in reversed(prefix.split('.')[:-1]):
        parent = nn.Module()
        parent.add_module(part, root)
        root = parent
    root.load_state_dict(published, strict=True)
    assert list(published) == names, "the caller's dict was changed"
    inputs = maps((5, 3), (9, 6))
    assert torch.equal(target(*inputs), source(*inputs))


def test_wrong_keys_are_not_swallowed(kind):
    module = make(kind)
    state = module.state_dict()
    state['ker_generator.extra'] = state['ker_generator.content_encoder.bias']
    with pytest.raises(RuntimeError, match='Unexpected key.*ker_generator.extra'):
        module.load_state_dict(state)
    del state['ker_generator.content_encoder.weight']
    with pytest.raises(RuntimeError, match='Missing key.*content_encoder.weight'):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match='gate_generator.conv.weight'):
        make(kind, gating=True).load_state_dict(make(kind, gating=False).state_dict())


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(kernel_size=4), ValueError, 'kernel_size must be odd and between 1 and 15, got 4'),
        (dict(kernel_size='5'), TypeError, 'kernel_size must be an int, got str'),
        (dict(guide_channels=6), ValueError, 'gating .* same number of channels, got 6 and 8'),
        (dict(in_channels=0), ValueError, 'in_channels must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**{'in_channels': 8, **options})


def test_bad_embed_dims():
    with pytest.raises(ValueError, match='embed_dims must be a positive integer, got 0'):
        FADE(8, embed_dims=0)
