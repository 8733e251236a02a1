# SPDX-License-Identifier: Apache-2.0
"""IndexNet against its definition written as loops, its published sizes and layout, and bad input."""

import itertools

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from sapa_mm.upsamplers import IndexNet

VARIANTS = [
    dict(index=index, use_nonlinear=nonlinear, use_context=context)
    for index, nonlinear, context in itertools.product(('holistic', 'o2o', 'm2o'), (False, True), (False, True))
]


@pytest.fixture(params=VARIANTS, ids=lambda v: '-'.join([v['index'], *(k[4:] for k in v if v[k] is True)]))
def variant(request):
    return request.param


def make(channels=3, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    module = IndexNet(channels, **options).to(dtype).eval()
    for x in module.state_dict().values():
        if x.is_floating_point():
            nn.init.uniform_(x, 0.1, 1.0) if x.dim() == 1 else nn.init.normal_(x, std=0.5)
    return module


def maps(feature_size, guide_size, channels=(3, 3), batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels[0], *feature_size, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(batch, channels[1], *guide_size, generator=generator, dtype=torch.float64).to(dtype),
    )


def value_of(net, guide, row, column):
    """One net at one low-resolution position: the window of the guide, zeros outside, by hand."""
    conv = net[0]
    side, pad = conv.kernel_size[0], conv.padding[0]
    out = torch.zeros(conv.out_channels, dtype=guide.dtype)
    for a in range(side):
        for b in range(side):
            r, c = 2 * row + a - pad, 2 * column + b - pad
            if 0 <= r < guide.shape[1] and 0 <= c < guide.shape[2]:
                weight = conv.weight[:, :, a, b]
                out += weight[:, 0] * guide[:, r, c] if conv.groups > 1 else weight @ guide[:, r, c]
    if len(net) > 1:
        norm, last = net[1], net[3]
        out = (out - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        out = out.clamp(0, 6)
        weight = last.weight[:, :, 0, 0]
        out = weight[:, 0] * out if last.groups > 1 else weight @ out
    return out


def definition(module, feature, guide):
    h, w = feature.shape[2:]
    height, width = guide.shape[2:]
    out = torch.zeros(feature.shape[1], height, width, dtype=feature.dtype)
    for i in range(height):
        for j in range(width):
            sub_pixel = i % 2 * 2 + j % 2
            if module.index == 'holistic':
                value = value_of(module.indexnet, guide[0], i // 2, j // 2)[sub_pixel]
            else:
                value = value_of(module.get_submodule(f'indexnet{sub_pixel + 1}'), guide[0], i // 2, j // 2)
            out[:, i, j] = torch.sigmoid(value) * feature[0, :, i * h // height, j * w // width]
    return out[None]


# exact ratio, odd sides, ratio 3.7, equal, guide smaller, one pixel
@pytest.mark.parametrize(
    'sizes',
    [((2, 3), (4, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (3, 2))],
    ids=str,
)
def test_matches_definition(variant, sizes):
    module = make(**variant)
    feature, guide = maps(*sizes)
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide))


def test_holistic_takes_any_number_of_guide_channels():
    module = IndexNet(3, 5, index='holistic')
    assert module(*maps((2, 2), (4, 4), (3, 5), dtype=torch.float32)).shape == (1, 3, 4, 4)


def test_gradcheck(variant):
    module = make(2, **variant)
    names = [name for name, _ in module.named_parameters()]

    def function(feature, guide, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (feature, guide))

    inputs = [x.detach().requires_grad_() for x in (*maps((3, 2), (5, 4), (2, 2)), *module.parameters())]
    assert gradcheck(function, inputs)


def test_every_parameter_gets_a_gradient(variant):
    torch.manual_seed(0)
    module = IndexNet(8, **variant)  # as initialised, in training mode
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), (8, 8), batch=2, dtype=torch.float32))
    module(feature, guide).square().sum().backward()
    for name, x in (('feature', feature), ('guide', guide), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


def test_bfloat16_autocast(variant):
    module = make(8, torch.float32, **variant)
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), (8, 8), dtype=torch.float32))
    expected = module(feature, guide)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = module(feature, guide)
    # The sigmoid is at most 1/4 as steep as its argument, of which two convolutions round 2^-9 each.
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.02)
    out.float().square().sum().backward()
    for name, x in (('feature', feature), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


@pytest.mark.parametrize('c', [256, 6])
def test_parameter_count_formulas(variant, c):
    index, nonlinear, context = variant.values()
    published = {
        'm2o': {(0, 0): 16 * c**2, (0, 1): 64 * c**2, (1, 0): 20 * c**2 + 8 * c, (1, 1): 68 * c**2 + 8 * c},
        'o2o': {(0, 0): 16 * c, (0, 1): 64 * c, (1, 0): 28 * c, (1, 1): 76 * c},
        'holistic': {(0, 0): 16 * c, (0, 1): 64 * c, (1, 0): 8 * c**2 + 12 * c, (1, 1): 32 * c**2 + 12 * c},
    }[index][nonlinear, context]
    k = 16 if context else 4
    formula = {  # of the docstring
        'm2o': 4 * (k + 1) * c**2 + 8 * c if nonlinear else 4 * k * c**2,
        'o2o': 4 * (k + 3) * c if nonlinear else 4 * k * c,
        'holistic': 2 * k * c**2 + 12 * c if nonlinear else 4 * k * c,
    }[index]
    assert sum(p.numel() for p in IndexNet(c, **variant).parameters()) == published == formula


def test_initialisation():
    """Torch's own: uniform within 1 / sqrt(fan in)."""
    torch.manual_seed(0)
    module = IndexNet(64, use_nonlinear=True)

    def check():
        for n in range(1, 5):
            conv, norm, _, last = module.get_submodule(f'indexnet{n}')
            for layer, fan_in in ((conv, 4 * 64), (last, 64)):
                assert 0.95 * fan_in**-0.5 < layer.weight.abs().max() <= fan_in**-0.5
            assert (norm.weight == 1).all() and not norm.bias.any() and not norm.running_mean.any()

    check()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.indexnet1[1].running_mean.fill_(3)
    module.init_weights()
    check()


@pytest.mark.parametrize('prefix', ['', 'index_net.', 'upsamplers.0.index_net.'])
def test_loads_published_layouts(variant, prefix):
    source, target = make(**variant), make(seed=1, **variant)
    published = {prefix + name: x for name, x in source.state_dict().items()}
    nets = ['indexnet'] if variant['index'] == 'holistic' else [f'indexnet{n}' for n in range(1, 5)]
    layers = ['0', '1', '3'] if variant['use_nonlinear'] else ['0']
    weights = {f'{prefix}{net}.{layer}.weight' for net in nets for layer in layers}
    assert weights == {name for name in published if name.endswith('weight')}
    if variant['index'] == 'holistic' and not variant['use_nonlinear']:  # one convolution there
        published = {f'{prefix}indexnet.weight': source.indexnet[0].weight}
    root = nn.ModuleDict(dict(upsamplers=nn.ModuleList([target]))) if prefix.startswith('up') else target
    root.load_state_dict(published, strict=True)
    inputs = maps((5, 3), (9, 6))
    assert torch.equal(target(*inputs), source(*inputs))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(index='depthwise'), "index must be one of .*'m2o'.* got 'depthwise'"),
        (dict(guide_channels=6), "index='m2o' needs .* same number of channels, got 6 and 8"),
        (dict(guide_channels=6, index='o2o'), "index='o2o' needs .* got 6 and 8"),
        (dict(guide_channels=-1), 'guide_channels must be a positive integer, got -1'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        IndexNet(**{'in_channels': 8, **options})
