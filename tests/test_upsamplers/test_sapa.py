# SPDX-License-Identifier: Apache-2.0
"""SAPA against its definition written as loops, its published sizes and layouts, and bad input."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from sapa_mm.ops.maps import EPS
from sapa_mm.upsamplers import SAPA, build_upsampler

NORMALIZATIONS = ['softmax', 'relu', 'sigmoid', 'softplus']
VARIANTS = {
    'inner': dict(similarity='inner'),
    'bilinear': dict(similarity='bilinear'),
    'gated-separate': dict(similarity='gated', gate='separate'),
    'gated-shared': dict(similarity='gated', gate='shared'),
    'plain': dict(similarity='plain'),
}
# feature size, guide size: exact ratio, odd ratio, ratio 3.7, equal, guide smaller, one pixel
SIZES = [((2, 3), (4, 6)), ((5, 3), (9, 8)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (3, 2))]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    return request.param


def make(channels=(4, 4), scale=0.5, dtype=torch.float64, **options):
    """A module whose weights are large enough that every path matters: at 0.02 the kernels are nearly uniform."""
    torch.manual_seed(0)
    in_channels, guide_channels = channels
    module = SAPA(in_channels, guide_channels, **{'embed_dims': 3, **options}).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.1, std=scale)
    return module


def maps(feature_size, guide_size, channels=(4, 4), batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels[0], *feature_size, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(batch, channels[1], *guide_size, generator=generator, dtype=torch.float64).to(dtype),
    )


def definition(module, feature, guide):
    """One image, one point at a time: projections as matrices, the window as two loops."""

    def normed(x, norm):
        if isinstance(norm, nn.Identity):
            return x
        centred = x - x.mean()
        out = centred / (centred.square().mean() + 1e-5).sqrt()
        return out if norm.weight is None else out * norm.weight + norm.bias

    def project(layer, x):
        out = layer.weight.flatten(1) @ x
        return out if layer.bias is None else out + layer.bias

    def query(x, y):
        xn, yn = normed(x, module.norm_x), normed(y, module.norm_y)
        if module.similarity == 'inner':
            return yn
        if module.similarity == 'bilinear':
            return project(module.q, yn)
        if module.similarity == 'plain':
            return project(module.qy, yn) + project(module.qx, x)
        gate = torch.sigmoid(project(module.gate, xn))
        if module.shared_gate:
            return project(module.q, gate * yn + (1 - gate) * xn)
        return gate * project(module.qy, yn) + (1 - gate) * project(module.qx, x)

    def key(x):
        x = normed(x, module.norm_x)
        return x if module.similarity == 'inner' else project(module.k, x)

    def value(x):
        return project(module.v, normed(x, module.norm_x)) if hasattr(module, 'v') else x

    h, w = feature.shape[1:]
    height, width = guide.shape[1:]
    radius = module.kernel_size // 2
    out = torch.zeros(module.out_channels, height, width, dtype=feature.dtype)
    for i in range(height):
        for j in range(width):
            row, column = i * h // height, j * w // width
            q = query(feature[:, row, column], guide[:, i, j])
            weights, values = [], []
            for r in range(row - radius, row + radius + 1):
                for c in range(column - radius, column + radius + 1):
                    inside = 0 <= r < h and 0 <= c < w
                    score = q @ key(feature[:, r, c]) if inside else torch.zeros((), dtype=q.dtype)
                    weights.append(
                        {
                            'softmax': torch.exp,
                            'relu': torch.relu,
                            'sigmoid': torch.sigmoid,
                            'softplus': lambda s: torch.log1p(torch.exp(s)),
                        }[module.normalization](score)
                    )
                    values.append(value(feature[:, r, c]) if inside else out.new_zeros(module.out_channels))
            total = sum(weights) + (0 if module.normalization == 'softmax' else EPS)
            out[:, i, j] = sum(a * v for a, v in zip(weights, values)) / total
    return out


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_matches_definition(variant, sizes):
    module, (feature, guide) = make(kernel_size=3, **variant), maps(*sizes)
    torch.testing.assert_close(module(feature, guide)[0], definition(module, feature[0], guide[0]))


@pytest.mark.parametrize(
    'options',
    [
        *(dict(normalization=n) for n in NORMALIZATIONS),
        dict(kernel_size=5),
        dict(kernel_size=1),
        dict(norm=None),
        dict(bias=False),
        dict(embed_value=True),
        dict(out_channels=6),
    ],
    ids=str,
)
def test_options_match_definition(variant, options):
    module = make(**{'kernel_size': 3, **variant, **options})
    feature, guide = maps((4, 3), (7, 5))
    torch.testing.assert_close(module(feature, guide)[0], definition(module, feature[0], guide[0]))


def test_group_norm_is_over_space():
    """norm='group' is torch's GroupNorm of 32 groups on the whole map."""
    module = make((32, 64), similarity='bilinear', norm='group')
    feature, guide = maps((4, 3), (7, 5), (32, 64), batch=2)
    plain = make((32, 64), similarity='bilinear', norm=None)
    plain.load_state_dict(module.state_dict(), strict=False)
    plain.norm_x, plain.norm_y = module.norm_x, module.norm_y
    assert isinstance(module.norm_y, nn.GroupNorm) and module.norm_y.num_groups == 32
    query, key, value = module.embed(feature, guide)
    normed = nn.functional.group_norm(feature, 32, module.norm_x.weight, module.norm_x.bias)
    torch.testing.assert_close(key, module.k(normed))
    assert query.shape == (2, 3, 7, 5) and value is feature


def test_kernels_mix_the_window():
    """`kernels`, to look at, are those of `forward`, and sum to 1 over the window."""
    module, (feature, guide) = make(kernel_size=3), maps((4, 3), (8, 6), batch=2)
    kernels = module.kernels(feature, guide)
    torch.testing.assert_close(kernels.sum(1), torch.ones(2, 8, 6, dtype=torch.float64))
    windows = nn.functional.unfold(feature, 3, padding=1).view(2, 4, 9, 4, 3)
    windows = windows.repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close((windows * kernels[:, None]).sum(2), module(feature, guide))


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_gradcheck(variant, normalization):
    """Of feature, guide and every parameter."""
    channels = (3, 3) if variant['similarity'] == 'inner' or variant.get('gate') == 'shared' else (3, 2)
    module = make(channels, kernel_size=3, normalization=normalization, **{'embed_dims': 2, **variant})
    names = [name for name, _ in module.named_parameters()]

    def function(feature, guide, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (feature, guide))

    inputs = [x.detach().requires_grad_() for x in (*maps((5, 3), (9, 8), channels), *module.parameters())]
    assert gradcheck(function, inputs)


@pytest.mark.parametrize(
    'options', [dict(), dict(norm='group'), dict(norm=None), dict(embed_value=True), dict(out_channels=16)], ids=str
)
def test_every_parameter_gets_a_gradient(variant, options):
    torch.manual_seed(0)
    module = SAPA(32, **variant, **options)  # as initialised, not as `make` does
    feature, guide = maps((5, 3), (9, 8), (32, 32), batch=2, dtype=torch.float32)
    module(feature.requires_grad_(), guide.requires_grad_()).square().sum().backward()
    for name, x in (('feature', feature), ('guide', guide), *module.named_parameters()):
        assert x.grad is not None and x.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    'options, count',
    [
        (dict(similarity='inner'), 0),
        (dict(similarity='inner', norm='group'), 0),
        (dict(similarity='bilinear', embed_dims=64), 33_920),
        (dict(similarity='bilinear'), 17_472),
        (dict(similarity='bilinear', norm='group'), 17_472),
        (dict(similarity='gated', embed_dims=64), 50_625),
        (dict(), 25_953),
        (dict(similarity='gated', gate='shared'), 17_472 + 256 + 1),
    ],
    ids=str,
)
def test_published_parameter_counts(options, count):
    assert sum(p.numel() for p in SAPA(256, **options).parameters()) == count


@pytest.mark.parametrize('x, y, d, out', [(6, 10, 4, 6), (7, 3, 5, 2)])
def test_parameter_count_formulas(x, y, d, out):
    """Feature `x`, guide `y`, embedding `d`, `out` channels."""

    def count(**options):
        return sum(p.numel() for p in SAPA(x, y, embed_dims=d, **options).parameters())

    norms = 2 * (x + y)
    assert count(similarity='bilinear') == d * (y + x) + 2 * d + norms
    assert count(similarity='bilinear', bias=False) == d * (y + x) + norms
    assert count(similarity='bilinear', norm=None) == d * (y + x) + 2 * d
    assert count(similarity='plain') == d * (y + 2 * x) + 2 * d + norms
    assert count(similarity='gated') == d * (y + 2 * x) + 3 * d + x + 1 + norms
    assert count(similarity='gated', bias=False) == d * (y + 2 * x) + x + norms
    value = out * (x + 1)
    embeds = out != x
    assert count(similarity='gated', out_channels=out) - count(similarity='gated') == (value if embeds else 0)
    assert count(similarity='gated', out_channels=out, embed_value=True) - count(similarity='gated') == value


def assert_published_initialisation(module):
    for name, parameter in module.named_parameters():
        if name.endswith('bias'):
            assert not parameter.any(), name
        elif name.startswith('norm'):
            assert (parameter == 1).all(), name
        else:
            deviation = 0.02 * (1 + 4 / parameter.numel() ** 0.5)  # four standard errors
            assert 0.04 - deviation < parameter.std().item() < deviation, name
            assert parameter.mean().abs() < 0.02 * 5 / parameter.numel() ** 0.5, name


def test_initialisation(variant):
    torch.manual_seed(0)
    module = SAPA(256, **variant, embed_value=True)
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


def test_init_cfg_comes_on_top():
    module = SAPA(8, init_cfg=dict(type='Constant', val=0.5, override=dict(name='k')))
    module.init_weights()
    assert (module.k.weight == 0.5).all()
    assert module.qy.weight.std() < 0.04


def in_published_layout(state, layout):
    """Rename and reshape this module's own state dict, backwards."""
    log = {'qy.': 'q.proj_y.', 'qx.': 'q.proj_x.', 'gate.': 'q.gate.', 'q.': 'q.proj.', 'k.': 'k.proj.'}
    out = {}
    for name, x in state.items():
        for old, new in log.items() if layout == 'log' else ():
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        out[name] = x.flatten(1) if x.dim() == 4 else x
    return out


@pytest.mark.parametrize('prefix', ['', 'decode_head.upsamplers.0.'])
@pytest.mark.parametrize('layout', ['released', 'log'])
@pytest.mark.parametrize('kind', ['bilinear', 'gated-separate', 'gated-shared'])
def test_loads_published_layouts(kind, layout, prefix):
    """Both have linear layers; the training log has the projections one level deeper."""
    source = make((4, 4), embed_value=True, **VARIANTS[kind])
    target = make((4, 4), scale=2, embed_value=True, **VARIANTS[kind])
    published = {prefix + name: x for name, x in in_published_layout(source.state_dict(), layout).items()}
    assert f'{prefix}k.weight' in published or f'{prefix}k.proj.weight' in published
    names = list(published)
    root = target
    for part in reversed(prefix.split('.')[:-1]):
        parent = nn.Module()
        parent.add_module(part, root)
        root = parent
    root.load_state_dict(published, strict=True)
    assert list(published) == names, "the caller's dict was changed"
    inputs = maps((5, 3), (9, 8))
    assert torch.equal(target(*inputs), source(*inputs))


def test_loads_the_projection_of_the_concatenation():
    """Published `cat`: one `q.weight` over the encoder's channels, then the decoder's."""
    torch.manual_seed(0)
    module = make((5, 2), similarity='plain')
    joint, bias = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    state = {k: v for k, v in module.state_dict().items() if not k.startswith('q')}
    module.load_state_dict({**state, 'q.weight': joint, 'q.bias': bias}, strict=True)
    feature, guide = maps((3, 2), (6, 4), (5, 2))
    repeated = feature.repeat_interleave(2, 2).repeat_interleave(2, 3)
    both = torch.cat([module.norm_y(guide), repeated], 1)
    expected = torch.einsum('dc,nchw->ndhw', joint, both) + bias[:, None, None]
    torch.testing.assert_close(module.embed(feature, guide)[0], expected)


def test_own_layout_round_trip(variant):
    source, target = make(**variant), make(scale=2, **variant)
    target.load_state_dict(source.state_dict(), strict=True)
    inputs = maps((5, 3), (9, 8))
    assert torch.equal(target(*inputs), source(*inputs))


def test_without_bias_only_the_norms_have_one(variant):
    """As in the published modules, whose `qkv_bias` is that of the gate too: their state dicts load."""
    module = make(bias=False, embed_value=True, **variant)
    assert {name for name in module.state_dict() if name.endswith('bias')} <= {'norm_y.bias', 'norm_x.bias'}


def test_wrong_keys_are_not_swallowed():
    with pytest.raises(RuntimeError, match='qx.weight'):
        SAPA(4, similarity='gated').load_state_dict(SAPA(4, similarity='bilinear').state_dict())


@pytest.mark.parametrize('normalization', ['softmax', 'sigmoid', 'softplus'])
@pytest.mark.parametrize('sizes', [((9, 7), (18, 14)), ((9, 7), (25, 16)), ((9, 7), (9, 7))], ids=str)
def test_constant_map_stays_constant_inside(variant, normalization, sizes):
    """Away from the border the weights sum to 1; relu is left out, for which all weights of a window can be 0."""
    (h, w), (height, width) = sizes
    module = make(normalization=normalization, **variant)
    _, guide = maps(*sizes)
    feature = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).view(1, 4, 1, 1).expand(1, 4, h, w)
    out = module(feature, guide)
    inside = torch.zeros(height, width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            inside[i, j] = 2 <= i * h // height < h - 2 and 2 <= j * w // width < w - 2
    expected = feature[0, :, :1, 0].expand(-1, int(inside.sum()))
    # the three other than softmax add EPS to a sum which is far above 1e-2 here
    torch.testing.assert_close(out[0][:, inside], expected, rtol=1e-9 if normalization == 'softmax' else 1e-3, atol=0)


def test_border_of_a_constant_map_with_equal_scores():
    """Positions outside have score 0 and value 0: 9, 12, 15, 16, 20 of 25 are inside."""
    module = SAPA(1, similarity='bilinear', norm=None).double()
    nn.init.zeros_(module.q.weight)
    out = module(torch.ones(1, 1, 7, 7).double(), torch.ones(1, 1, 14, 14).double())[0, 0, ::2, ::2] * 25
    rows = torch.tensor([3, 4, 5, 5, 5, 4, 3], dtype=torch.float64)
    torch.testing.assert_close(out, rows[:, None] * rows)


def test_bfloat16_autocast(variant):
    module = make((32, 32), dtype=torch.float32, scale=0.1, embed_dims=16, **variant)
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 8), (32, 32), dtype=torch.float32))
    if variant['similarity'] == 'inner':  # 32 normalised channels make nearly one-hot kernels: less sharp
        guide = guide * 0.1
        module.norm_y = nn.Identity()
    expected = module(feature, guide)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = module(feature, guide)
    assert out.dtype == torch.bfloat16
    # bfloat16 has 8 bits: inputs, projections and the result are each rounded to 2^-9 of their size
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.06)
    out.float().square().sum().backward()
    for name, x in (('feature', feature), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(similarity='cosine'), ValueError, "similarity must be one of .*'gated'.* got 'cosine'"),
        (dict(gate='joint'), ValueError, "gate must be one of .*'separate'.* got 'joint'"),
        (dict(norm='batch'), ValueError, "norm must be one of .*'layer'.* got 'batch'"),
        (dict(normalization='exp'), ValueError, "normalization must be one of .*'softmax'.* got 'exp'"),
        (dict(kernel_size=4), ValueError, 'kernel_size must be odd and between 1 and 15, got 4'),
        (dict(kernel_size=-1), ValueError, 'kernel_size must be odd and between 1 and 15, got -1'),
        (dict(kernel_size=5.0), TypeError, 'kernel_size must be an int, got float'),
        (dict(embed_dims=0), ValueError, 'embed_dims must be a positive integer, got 0'),
        (dict(out_channels=-3), ValueError, 'out_channels must be a positive integer, got -3'),
        (dict(in_channels='8'), ValueError, "in_channels must be a positive integer, got '8'"),
        (dict(norm='group'), ValueError, 'channels divisible by 32, got 8'),
        (dict(guide_channels=6, similarity='inner'), ValueError, "similarity='inner' needs .* got 6 and 8"),
        (dict(guide_channels=6, gate='shared'), ValueError, "gate='shared' needs .* got 6 and 8"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        SAPA(**{'in_channels': 8, **options})


@pytest.mark.parametrize(
    'feature, guide, message',
    [
        ((1, 5, 4, 4), (1, 6, 8, 8), 'SAPA was built for a feature of 4 channels, got 5'),
        ((1, 4, 4, 4), (1, 5, 8, 8), 'SAPA was built for a guide of 6 channels, got 5'),
        ((4, 4, 4), (1, 6, 8, 8), r'feature must have 4 dimensions \(N, C, H, W\), got 3: \(4, 4, 4\)'),
        ((1, 4, 4, 4), (1, 1, 6, 8, 8), r'guide must have 4 dimensions \(N, C, H, W\), got 5'),
        ((1, 4, 4, 4), (2, 6, 8, 8), 'one batch size, got 1 and 2'),
    ],
    ids=str,
)
def test_bad_inputs(feature, guide, message):
    with pytest.raises(ValueError, match=message):
        SAPA(4, 6)(torch.zeros(feature), torch.zeros(guide))


def test_mixed_dtypes_and_empty_feature():
    module = SAPA(4, similarity='inner', norm=None)
    with pytest.raises(TypeError, match='one dtype, got torch.float64 and torch.float32'):
        module(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 4, 4).double())
    with pytest.raises(ValueError, match=r'empty, \(1, 4, 0, 2\), where the output has size \(4, 4\)'):
        module(torch.zeros(1, 4, 0, 2), torch.zeros(1, 4, 4, 4))


def test_empty_batch():
    out = SAPA(4, 6)(torch.zeros(0, 4, 3, 3), torch.zeros(0, 6, 7, 5))
    assert out.shape == (0, 4, 7, 5)


def test_build_fills_in_the_channels():
    module = build_upsampler(dict(type='sapa_mm.SAPA', kernel_size=3), 8, 6)
    assert type(module) is SAPA and (module.in_channels, module.guide_channels, module.kernel_size) == (8, 6, 3)
    assert module.similarity == 'gated' and hasattr(module, 'qx')
    assert isinstance(build_upsampler(dict(type=SAPA), 8, 8), SAPA)


@pytest.mark.parametrize(
    'cfg, error, message',
    [
        ('sapa_mm.SAPA', TypeError, "upsample_cfg must be a dict with a 'type'.* got 'sapa_mm.SAPA'"),
        (['sapa_mm.SAPA'], TypeError, "upsample_cfg must be a dict with a 'type'"),
        (dict(similarity='gated'), TypeError, "upsample_cfg must be a dict with a 'type'"),
        (
            dict(type='sapa_mm.SAPPA'),
            TypeError,
            "type 'sapa_mm.SAPPA' is no upsampler; did you mean 'sapa_mm.SAPA'",
        ),
        (dict(type='sapa_mm.SAPA', similarty='gated'), TypeError, "no option 'similarty'; did you mean 'similarity'"),
        (dict(type='sapa_mm.SAPA', xyz=1), TypeError, "SAPA has no option 'xyz' It has .*'embed_dims'"),
        (dict(type='sapa_mm.SAPA', similarity='cosine'), ValueError, "got 'cosine'"),
        (dict(type='sapa_mm.SAPA', kernel_size=2), ValueError, 'kernel_size must be odd'),
        (dict(type='sapa_mm.SAPA', in_channels=16), ValueError, 'in_channels must be 8 here, got 16'),
        (dict(type='sapa_mm.SAPA', guide_channels=16), ValueError, 'guide_channels must be 6 here, got 16'),
        (dict(type='sapa_mm.SAPA', out_channels=16), ValueError, 'out_channels must be 8 here, got 16'),
    ],
    ids=str,
)
def test_bad_upsample_cfg(cfg, error, message):
    with pytest.raises(error, match=message):
        build_upsampler(cfg, 8, 6)
