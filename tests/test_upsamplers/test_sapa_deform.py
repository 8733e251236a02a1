# SPDX-License-Identifier: Apache-2.0
"""SAPA-D against its definition written as loops, its published sizes, and bad input."""

from math import floor

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from sapa_mm.upsamplers import SAPADeform

OPTIONS = [
    dict(),
    dict(high_offset=False),
    dict(groups=1, num_points=4),
    dict(scale_factor=3, norm='layer'),
    dict(bias=False),
]
# exact ratio, odd sides, ratio 3.7, equal, guide smaller, one pixel
SIZES = [((2, 3), (4, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (3, 2))]


def make(channels=(4, 3), dtype=torch.float64, **options):
    """Offsets of about a position, so that some points leave the map, and scores that are far from uniform."""
    torch.manual_seed(0)
    module = SAPADeform(*channels, **{'groups': 2, 'num_points': 3, 'embed_dims': 3, **options}).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.6)
    return module


def maps(feature_size, guide_size, channels=(4, 3), batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels[0], *feature_size, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(batch, channels[1], *guide_size, generator=generator, dtype=torch.float64).to(dtype),
    )


def bilinear(x, row, column):
    """Sample ``(C, h, w)`` at one place; each of the four taps counts if it is inside."""
    out = torch.zeros(x.shape[0], dtype=x.dtype)
    for r in (floor(row), floor(row) + 1):
        for c in (floor(column), floor(column) + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                out += (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return out


def definition(module, feature, guide):
    """One image, one position, one group, one point at a time."""
    x, y = module.norm_x(feature), module.norm_y(guide)
    query, key, offset = module.q(y)[0], module.k(x)[0], module.offset(x)[0]
    groups, points, scale = module.groups, module.num_points, module.scale_factor
    h, w = feature.shape[2:]
    height, width = guide.shape[2:]
    out = torch.zeros(module.in_channels, height, width, dtype=feature.dtype)
    d, c = query.shape[0] // groups, module.in_channels // groups
    for i in range(height):
        for j in range(width):
            cell = i * h // height, j * w // width
            fine = i * h * scale // height, j * w * scale // width
            for g in range(groups):
                values, scores = [], []
                for p in range(points):
                    move = []
                    for axis in range(2):
                        channel = (g * points + p) * 2 + axis
                        if module.high_offset:
                            sub_pixel = fine[0] % scale * scale + fine[1] % scale
                            channel, place = channel * scale**2 + sub_pixel, (fine[0] // scale, fine[1] // scale)
                        else:
                            place = cell
                        move.append(offset[channel, place[0], place[1]].item())
                    at = cell[0] + move[1], cell[1] + move[0]
                    scores.append(query[g * d : (g + 1) * d, i, j] @ bilinear(key[g * d : (g + 1) * d], *at))
                    values.append(bilinear(feature[0, g * c : (g + 1) * c], *at))
                weights = torch.stack(scores).softmax(0)
                out[g * c : (g + 1) * c, i, j] = sum(a * v for a, v in zip(weights, values))
    return out[None]


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_matches_definition(options, sizes):
    module = make(**options)
    feature, guide = maps(*sizes)
    with torch.no_grad():
        torch.testing.assert_close(module(feature, guide), definition(module, feature, guide))


def test_odd_sides_are_cut():
    module = make()
    feature, guide = maps((4, 5), (8, 10))
    whole = module(feature, guide)
    torch.testing.assert_close(module(feature, guide[:, :, :7, :9]), whole[:, :, :7, :9])


def test_kernels_and_positions_are_those_that_mix():
    module = make()
    feature, guide = maps((4, 5), (9, 7))
    kernels, positions = module.kernels(feature, guide), module.positions(feature, guide)
    assert kernels.shape == (1, 2, 3, 9, 7) and positions.shape == (1, 2, 3, 2, 9, 7)
    torch.testing.assert_close(kernels.sum(2), torch.ones(1, 2, 9, 7, dtype=torch.float64))
    out = module(feature, guide)
    for i, j in ((0, 0), (3, 6), (8, 2)):
        for g in range(2):
            expected = sum(
                kernels[0, g, p, i, j] * bilinear(feature[0, 2 * g : 2 * g + 2], y.item(), x.item())
                for p, (x, y) in enumerate(positions[0, g, :, :, i, j])
            )
            torch.testing.assert_close(out[0, 2 * g : 2 * g + 2, i, j], expected)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_gradcheck(options):
    """Of feature, guide and every parameter; no point lies on a position, where the gradient has two sides."""
    module = make(**{**options, 'embed_dims': 2})
    names = [name for name, _ in module.named_parameters()]
    feature, guide = maps((3, 2), (5, 4))
    positions = module.positions(feature, guide)
    assert (positions - positions.round()).abs().min() > 1e-5

    def function(feature, guide, *parameters):
        return functional_call(module, dict(zip(names, parameters)), (feature, guide))

    inputs = [x.detach().requires_grad_() for x in (feature, guide, *module.parameters())]
    assert gradcheck(function, inputs)


@pytest.mark.parametrize('norm', ['group', 'layer', None])
def test_every_parameter_gets_a_gradient(norm):
    torch.manual_seed(0)
    module = SAPADeform(32, norm=norm)  # as initialised
    feature, guide = (x.requires_grad_() for x in maps((5, 3), (9, 6), (32, 32), batch=2, dtype=torch.float32))
    module(feature, guide).square().sum().backward()
    for name, x in (('feature', feature), ('guide', guide), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


def test_gradients_are_the_same_from_run_to_run():
    module = make((32, 32), torch.float32, groups=4, embed_dims=16)
    feature, guide = maps((17, 19), (34, 38), (32, 32), batch=2, dtype=torch.float32)

    def grads():
        inputs = [feature.clone().requires_grad_(), guide.clone().requires_grad_(), *module.parameters()]
        return torch.autograd.grad(module(*inputs[:2]).square().sum(), inputs)

    assert all(torch.equal(a, b) for a, b in zip(grads(), grads()))


def test_no_map_per_point_is_kept():
    """What autograd saves grows by indices and weights with the points, not by maps of samples."""

    def saved(points):
        module = make((128, 128), torch.float32, groups=2, embed_dims=32, num_points=points)
        storages = {}

        def pack(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(*maps((16, 16), (32, 32), (128, 128), dtype=torch.float32))
        return sum(storage.nbytes() for storage in storages.values())

    per_point = (saved(9) - saved(3)) / 6
    samples = 32 * 32 * (2 * 32 + 128) * 4  # of key and value, of one point
    assert per_point < samples / 3  # offsets, scores and weights of each position and group


def test_bfloat16_autocast():
    module = make((32, 32), torch.float32, embed_dims=8)
    for parameter in module.parameters():
        parameter.data *= 0.2
    feature, guide = (x.requires_grad_() for x in maps((5, 130), (9, 260), (32, 32), dtype=torch.float32))
    expected = module(feature, guide)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = module(feature, guide)
    assert out.dtype == torch.bfloat16
    # Offsets of about one position are rounded to 2^-9 of it; at column 129 bfloat16 itself knows only whole numbers.
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.06)
    out.float().square().sum().backward()
    for name, x in (('feature', feature), *module.named_parameters()):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


def test_bfloat16_module():
    module = make((8, 8), torch.bfloat16)
    out = module(*maps((4, 4), (8, 8), (8, 8), dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


@pytest.mark.parametrize('x, y', [(256, 256), (64, 96)])
def test_parameter_count_formula(x, y):
    def count(**options):
        return sum(p.numel() for p in SAPADeform(x, y, **options).parameters())

    def formula(groups=4, d=32, points=9, s=2):
        return groups * d * (x + y) + 2 * groups * d + 2 * groups * points * s**2 * (x + 1)

    assert count() == formula()
    assert count(norm='group') == formula() + 2 * (x + y)
    assert count(high_offset=False) == formula(s=1)
    assert count(bias=False) == formula() - 2 * 4 * 32 - 2 * 4 * 9 * 2**2
    assert count(groups=2, embed_dims=8, num_points=5, scale_factor=3) == formula(2, 8, 5, 3)
    if x == y == 256:
        assert count() == 139_808


def assert_published_initialisation(module):
    for name, parameter in module.named_parameters():
        if name.endswith('bias'):
            assert not parameter.any(), name
        elif name.startswith('norm'):
            assert (parameter == 1).all(), name
        else:
            assert 0.0195 < parameter.std() < 0.0205 and parameter.mean().abs() < 1e-3, name


def test_initialisation():
    torch.manual_seed(0)
    module = SAPADeform(256, norm='group')
    assert_published_initialisation(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    module.init_weights()
    assert_published_initialisation(module)


def test_published_keys():
    keys = {f'{name}.{kind}' for name in ('q', 'k', 'offset', 'norm_y', 'norm_x') for kind in ('weight', 'bias')}
    assert set(SAPADeform(32, norm='group').state_dict()) == keys
    assert set(SAPADeform(32).state_dict()) == {key for key in keys if not key.startswith('norm')}
    assert set(SAPADeform(32, bias=False).state_dict()) == {'q.weight', 'k.weight', 'offset.weight'}


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(groups=3), 'in_channels must be divisible by groups, got 8 and 3'),
        (dict(groups=0), 'groups must be a positive integer, got 0'),
        (dict(num_points=2.0), 'num_points must be a positive integer, got 2.0'),
        (dict(embed_dims=-1), 'embed_dims must be a positive integer, got -1'),
        (dict(scale_factor=0), 'scale_factor must be a positive integer, got 0'),
        (dict(norm='batch'), "norm must be one of .*'group'.* got 'batch'"),
        (dict(norm='group'), 'channels divisible by 32, got 8'),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SAPADeform(**{'in_channels': 8, **options})
