# SPDX-License-Identifier: Apache-2.0
from copy import deepcopy

import pytest
import torch
from torch import nn

from sapa_mm.matting import GuidedMattingNet
from sapa_mm.matting.network import ActivatedBatchNorm
from sapa_mm.upsamplers import BaseUpsampler

UPSAMPLERS = {
    'nearest': dict(type='sapa_mm.Nearest'),
    'bilinear': dict(type='sapa_mm.Bilinear'),
    'carafe': dict(type='sapa_mm.CARAFE'),
    'indexnet': dict(type='sapa_mm.IndexNet', use_nonlinear=True, use_context=True),
    'a2u': dict(type='sapa_mm.A2U'),
    'sapa-i': dict(type='sapa_mm.SAPA', similarity='inner'),
    'sapa-b': dict(type='sapa_mm.SAPA', similarity='bilinear'),
    'sapa-g': dict(type='sapa_mm.SAPA', similarity='gated'),
    'fade': dict(type='sapa_mm.FADE'),
    'fade-lite': dict(type='sapa_mm.FADELite'),
}


def build(name='nearest', **options):
    torch.manual_seed(0)
    return GuidedMattingNet(UPSAMPLERS[name], **options)


def picture(*shape, batch=1):
    return torch.randn(batch, 4, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', UPSAMPLERS)
def test_every_parameter_gets_a_gradient(name):
    # a batch of two: the pooled branch of the ASPP is a batch norm over one position per picture
    net = build(name, dropout_ratio=0.0).double().train()
    out = net(picture(32, 48, batch=2).double())
    assert out.shape == (2, 1, 32, 48)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()).sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    still = {key for key, p in net.named_parameters() if not p.grad.any()}
    assert still == set()


def test_guides_and_skips():
    """Each step gets a feature of half the size of its guide, with the channels of the table."""
    net, seen = build(), {}
    for step in (4, 3, 2, 1):
        stage = getattr(net, f'decoder_layer{step}')
        stage.register_forward_hook(
            lambda module, args, out, step=step: seen.update({step: [tuple(x.shape[1:]) for x in (*args, out)]})
        )
    net.eval()(picture(64, 96))
    assert seen == {
        4: [(256, 4, 6), (256, 8, 12), (256, 8, 12), (128, 8, 12)],
        3: [(128, 8, 12), (128, 16, 24), (128, 16, 24), (64, 16, 24)],
        2: [(64, 16, 24), (64, 32, 48), (64, 32, 48), (64, 32, 48)],
        1: [(64, 32, 48), (64, 64, 96), (64, 64, 96), (32, 64, 96)],
    }


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ('upsample_cfg', 'printed', 'exact'),
    [
        (dict(UPSAMPLERS['sapa-b'], embed_dims=64), '0.07', 68096),
        (dict(UPSAMPLERS['sapa-b'], embed_dims=32), '0.04', 35072),
        (UPSAMPLERS['carafe'], '0.26', 263824),
        (UPSAMPLERS['fade'], '0.12', 124008),
        (UPSAMPLERS['a2u'], '0.02', 21656),
        (dict(UPSAMPLERS['a2u'], downsample=True), '0.04', 40232),
    ],
)
def test_parameters_as_printed(upsample_cfg, printed, exact):
    """The columns of the paper's table, its draft and the repository, in millions."""
    more = count(GuidedMattingNet(upsample_cfg)) - count(build())
    assert more == exact
    assert f'{more / 1e6:.2f}' == printed


def test_other_parameter_counts():
    baseline = count(build())
    assert f'{baseline / 1e6:.2f}' == '8.05'
    assert count(build('fade-lite')) - baseline == 27216  # printed as 27K
    assert count(build('sapa-i')) == baseline
    # Printed as 12.26 M, which hidden maps of twice the published block's width give: 136 C^2 + 16 C per step.
    channels = (256, 128, 64, 64)
    assert count(build('indexnet')) - baseline == sum(68 * c * c + 8 * c for c in channels)
    assert f'{sum(136 * c * c + 16 * c for c in channels) / 1e6:.2f}' == '12.26'


def std_of_xavier(weight, gain):
    inputs, outputs = nn.init._calculate_fan_in_and_fan_out(weight)
    return gain * (2 / (inputs + outputs)) ** 0.5


@pytest.mark.parametrize('call', ['constructor', 'init_weights'])
@pytest.mark.parametrize('name', ['carafe', 'fade', 'sapa-g'])
def test_published_init(name, call):
    net = build(name)
    if call == 'init_weights':
        net.init_weights()
    gain = nn.init.calculate_gain('leaky_relu', 0.01)
    for key, module in net.named_modules():
        if not isinstance(module, nn.Conv2d) or module.weight.numel() < 2000:
            continue
        is_sapa = name == 'sapa-g' and '.up.' in key
        # of so many samples a deviation is within 7 per cent at 5 sigma
        wanted = std_of_xavier(module.weight, 0.1 if is_sapa else gain)
        assert float(module.weight.std()) == pytest.approx(wanted, rel=0.1), key
        if is_sapa:  # uniform: bounded at sqrt(3) deviations
            assert float(module.weight.detach().abs().max()) <= wanted * 3**0.5 * (1 + 1e-5)
        assert module.bias is None or not module.bias.any()


def test_own_init():
    """Upsamplers keep their own rule, in `init_weights` too."""
    net = build('sapa-g', upsampler_init='own')
    net.init_weights()
    for module in net.modules():
        if isinstance(module, BaseUpsampler):
            assert float(module.k.weight.std()) == pytest.approx(0.02, rel=0.1)


def test_inplace_abn_scale():
    """A norm with the option is one whose weights are |weight| + eps."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    for training in (True, False):
        norm = ActivatedBatchNorm(5, inplace_abn_scale=True).double().train(training)
        nn.init.normal_(norm.weight)
        assert (norm.weight < 0).any()
        plain = nn.BatchNorm2d(5).double().train(training)
        plain.weight.data = norm.weight.detach().abs() + norm.eps
        torch.testing.assert_close(norm(x), nn.functional.leaky_relu(plain(x), 0.01), rtol=1e-13, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), plain.buffers()))


def torchvision_resnet34_shapes():
    """Keys and shapes of torchvision's ResNet-34, from its architecture."""

    def norm(name, channels):
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            yield f'{name}.{part}', (channels,)
        yield f'{name}.num_batches_tracked', ()

    yield 'conv1.weight', (64, 3, 7, 7)
    yield from norm('bn1', 64)
    before = 64
    for stage, (units, channels) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for unit in range(units):
            name = f'layer{stage}.{unit}'
            inputs = before if unit == 0 else channels
            yield f'{name}.conv1.weight', (channels, inputs, 3, 3)
            yield from norm(f'{name}.bn1', channels)
            yield f'{name}.conv2.weight', (channels, channels, 3, 3)
            yield from norm(f'{name}.bn2', channels)
            if inputs != channels:
                yield f'{name}.downsample.0.weight', (channels, inputs, 1, 1)
                yield from norm(f'{name}.downsample.1', channels)
        before = channels
    yield 'fc.weight', (1000, 512)
    yield 'fc.bias', (1000,)


def test_torchvision_encoder():
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.tensor(7) if not shape else torch.rand(shape, generator=generator)
        for key, shape in torchvision_resnet34_shapes()
    }
    assert len(state) == 218
    net = build()
    before = deepcopy(net.state_dict())
    missing, unexpected = net.load_state_dict(dict(state), strict=False)
    after = net.state_dict()
    encoder = {key for key in before if key.startswith('layer')}
    counters = {key for key in before if key.endswith('num_batches_tracked')}  # never reported as missing
    assert unexpected == [] and set(missing) == before.keys() - encoder - counters
    assert torch.equal(after['layer0.0.weight'][:, :3], state['conv1.weight'])
    assert not after['layer0.0.weight'][:, 3].any()
    for ours, theirs in {
        'layer0.1.running_var': 'bn1.running_var',
        'layer1.block1.convs.conv2.weight': 'layer1.0.conv2.weight',
        'layer2_1.layer1.conv1.weight': 'layer2.0.conv1.weight',
        'layer2_1.layer2.bn2.bias': 'layer2.0.bn2.bias',
        'layer2_1.proj_conv.weight': 'layer2.0.downsample.0.weight',
        'layer3_1.proj_bn.running_mean': 'layer3.0.downsample.1.running_mean',
        'layer3_2.block3.convs.bn1.weight': 'layer3.3.bn1.weight',
    }.items():
        assert torch.equal(after[ours], state[theirs]), ours
    # every tensor of the encoder is one of theirs, and no two are the same one
    used = {tuple(after[key].flatten()[:3].tolist()) for key in encoder - counters}
    assert len(used) == len(encoder - counters)
    assert all(not torch.equal(after[key], before[key]) for key in encoder)


def test_its_own_state_dict_loads():
    net = build('sapa-b')
    other = build('sapa-b', dropout_ratio=0.1)
    other.load_state_dict(net.state_dict())
    x = picture(32, 32)
    assert torch.equal(net.eval()(x), other.eval()(x))


@pytest.mark.parametrize('shape', [(1, 3, 32, 32), (1, 4, 40, 32), (1, 4, 0, 32), (4, 32, 32)])
def test_bad_input(shape):
    with pytest.raises(ValueError, match=r'must be \(N, 4, H, W\) with H and W multiples of 16, got'):
        build()(torch.zeros(shape))


def test_bad_options():
    with pytest.raises(ValueError, match='dropout_ratio must be between 0 and 1, got 1.5'):
        build(dropout_ratio=1.5)
    with pytest.raises(ValueError, match="upsampler_init must be one of .* got 'none'"):
        build(upsampler_init='none')
