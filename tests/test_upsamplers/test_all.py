# SPDX-License-Identifier: Apache-2.0
"""What holds for every registered upsampler, alone and in every neck and head; a new one joins by being registered."""

import inspect
from importlib import import_module

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from sapa_mm.registry import MODELS
from sapa_mm.upsamplers import UPSAMPLERS, build_upsampler

PLACES = tuple(f'sapa_mm.{place}' for place in ('necks', 'decode_heads', 'pixel_decoders'))
for place in PLACES:
    import_module(place)
# Of this package alone, whatever else was registered by the tests that were imported before.
REGISTERED = {name: kind for name, kind in MODELS.module_dict.items() if kind.__module__.startswith('sapa_mm.')}

CHANNELS = 32  # the group norms among the upsamplers have 32 groups
IN_CHANNELS = [4, 6, 8, 10]
# exact ratio, odd sides, ratio 3.7, equal, guide smaller, one pixel
SIZES = [((4, 3), (8, 6)), ((5, 3), (9, 5)), ((3, 3), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (3, 2)), ((1, 1), (2, 1))]

ATTENTION = dict(embed_dims=CHANNELS, num_heads=2)
FFN = dict(embed_dims=CHANNELS, feedforward_channels=16, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type='ReLU'))
MASKFORMER = dict(
    in_channels=IN_CHANNELS, feat_channels=CHANNELS, out_channels=4, norm_cfg=dict(type='GN', num_groups=4)
)
HEAD = dict(in_channels=IN_CHANNELS, in_index=[0, 1, 2, 3], channels=CHANNELS, num_classes=3, norm_cfg=dict(type='BN'))
SIZE = (17, 21)
METAS = [dict(img_shape=SIZE, batch_input_shape=SIZE)] * 2
# What each neck or head needs beside `upsample_cfg`: its toolbox, options, further arguments of forward.
DECODERS = {
    'GuidedFPN': ('mmdet.models', dict(in_channels=IN_CHANNELS, out_channels=CHANNELS, num_outs=5), ()),
    'GuidedSegformerHead': ('mmseg.models', dict(HEAD, align_corners=False), ()),
    'GuidedUPerHead': ('mmseg.models', dict(HEAD, align_corners=False, pool_scales=(1, 2)), ()),
    'SegNetHead': (
        'mmseg.models',
        dict(in_channels=[32] * 4, in_index=[0, 1, 2, 3], channels=8, num_classes=3, num_convs=(1, 1, 1)),
        (),
    ),
    'GuidedPixelDecoder': ('mmdet.models', MASKFORMER, (METAS,)),
    'GuidedTransformerEncoderPixelDecoder': (
        'mmdet.models',
        dict(
            MASKFORMER,
            encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=dict(ATTENTION, batch_first=True), ffn_cfg=FFN)),
            positional_encoding=dict(num_feats=CHANNELS // 2, normalize=True),
        ),
        (METAS,),
    ),
    'GuidedMSDeformAttnPixelDecoder': (
        'mmdet.models',
        dict(
            MASKFORMER,
            strides=[1, 2, 4, 8],
            num_outs=3,
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(ATTENTION, num_levels=3, num_points=2, batch_first=True), ffn_cfg=FFN
                ),
            ),
            positional_encoding=dict(num_feats=CHANNELS // 2, normalize=True),
        ),
        (),
    ),
}


def maps(feature_size, guide_size, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(batch, CHANNELS, *size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (feature_size, guide_size)
    )


def make(name, seed=0, **options):
    torch.manual_seed(seed)
    return build_upsampler(dict(type=f'sapa_mm.{name}', **options), CHANNELS, CHANNELS).eval()


@pytest.fixture(params=UPSAMPLERS)
def name(request):
    return request.param


def levels(channels):
    """Sizes halved and rounded up: 17x21, 9x11, 5x6, 3x3."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, c, -(-SIZE[0] // 2**i), -(-SIZE[1] // 2**i), generator=generator) for i, c in enumerate(channels)
    ]


def tensors(outputs):
    """All maps that a neck or head gives, nested as they come."""
    return [outputs] if torch.is_tensor(outputs) else [x for part in outputs for x in tensors(part)]


def test_every_neck_and_head_is_in_the_matrix():
    takes = {
        name
        for name, kind in REGISTERED.items()
        if kind.__module__.startswith(PLACES) and 'upsample_cfg' in inspect.signature(kind).parameters
    }
    pytest.importorskip('mmdet.models')
    pytest.importorskip('mmseg.models')
    assert takes == set(DECODERS)
    assert {'CARAFE', 'Deconv', 'DySample', 'SAPA'} < set(UPSAMPLERS)


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('decoder', DECODERS)
def test_one_training_step_at_odd_sizes(name, decoder, autocast):
    """Built from a config and initialised, every parameter gets a gradient, and all that have one move."""
    toolbox, options, arguments = DECODERS[decoder]
    pytest.importorskip(toolbox)
    torch.manual_seed(0)
    cfg = dict(type=f'sapa_mm.{decoder}', upsample_cfg=dict(type=f'sapa_mm.{name}'), **options)
    module = MODELS.build(ConfigDict(cfg))
    module.init_weights()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    inputs = [x.requires_grad_() for x in levels(options['in_channels'])]
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        outs = tensors(module(inputs, *arguments))
    assert max(outs, key=lambda x: x.shape[2]).shape[2:] == SIZE
    sum(out.float().square().mean() for out in outs).backward()
    optimizer.step()

    assert inputs[-1].grad.any() and inputs[-1].grad.isfinite().all()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        if 'upsamplers' in parameter_name:
            assert parameter.grad.any(), parameter_name
        moved = not torch.equal(parameter, before[parameter_name])
        assert moved or parameter.grad.abs().max() < 1e-6 * parameter.abs().max(), parameter_name


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_any_size(name, sizes):
    feature, guide = maps(*sizes)
    out = make(name)(feature, guide)
    assert out.shape == (2, CHANNELS, *sizes[1]) and out.isfinite().all()
    assert out.std() > 0


def test_empty_batch(name):
    assert make(name)(*maps((3, 3), (5, 6), batch=0)).shape == (0, CHANNELS, 5, 6)


def test_images_of_a_batch_do_not_meet(name):
    """Each image gives what it gives alone; the modules are in eval mode."""
    module, (feature, guide) = make(name), maps((4, 3), (7, 6))
    whole = module(feature, guide)
    for i in range(2):
        torch.testing.assert_close(module(feature[i : i + 1], guide[i : i + 1]), whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_non_contiguous_inputs(name):
    module, (feature, guide) = make(name), maps((4, 3), (7, 6))
    expected = module(feature, guide)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x, y = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (feature, guide))
        if memory_format == torch.channels_last:
            x, y = (t.contiguous(memory_format=torch.channels_last) for t in (feature, guide))
        torch.testing.assert_close(module(x, y), expected, rtol=1e-4, atol=1e-5)


def test_needs_guide_says_whether_values_of_the_guide_count(name):
    module, (feature, guide) = make(name), maps((4, 3), (8, 6))
    changed = torch.equal(module(feature, guide), module(feature, guide.flip(3) * 3))
    assert changed != module.needs_guide
    assert type(module).needs_guide is module.needs_guide


def test_state_dict_round_trip(name):
    source, target = make(name), make(name, seed=1)
    for x in source.state_dict().values():
        if x.is_floating_point():
            nn.init.uniform_(x, 0.1, 0.5)
    target.load_state_dict(source.state_dict(), strict=True)
    inputs = maps((5, 3), (9, 6))
    assert torch.equal(target(*inputs), source(*inputs))


def test_init_weights_repeats_the_initialisation(name):
    """From one seed, the weights that the constructor gave."""
    module = make(name)
    torch.manual_seed(3)
    module.init_weights()
    first = {key: x.clone() for key, x in module.state_dict().items()}
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 5, 6)
    torch.manual_seed(3)
    module.init_weights()
    assert all(torch.equal(x, first[key]) for key, x in module.state_dict().items())


def test_float64(name):
    """Every step follows the dtype: float64 in float32 would be off by 1e-7."""
    module, (feature, guide) = make(name), maps((5, 3), (9, 5), dtype=torch.float64)
    single = module(feature.float(), guide.float())
    double = module.double()(feature, guide)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)
    assert (double.float().double() - double).any()  # it has bits that float32 has not


def test_bfloat16_autocast(name):
    module, (feature, guide) = make(name), maps((5, 3), (9, 5))
    expected = module(feature, guide)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = module(feature, guide)
    # weights as initialised, so that kernels are smooth: inputs and results are rounded to 2^-9 of their size
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    'feature, guide, message',
    [
        ((1, 31, 4, 4), (1, 32, 8, 8), 'was built for a feature of 32 channels, got 31'),
        ((32, 4, 4), (1, 32, 8, 8), r'feature must have 4 dimensions \(N, C, H, W\), got 3: \(32, 4, 4\)'),
        ((1, 32, 4, 4), (1, 1, 32, 8, 8), r'guide must have 4 dimensions \(N, C, H, W\), got 5'),
        ((1, 32, 4, 4), (2, 32, 8, 8), 'one batch size, got 1 and 2'),
    ],
    ids=str,
)
def test_bad_inputs(name, feature, guide, message):
    with pytest.raises(ValueError, match=message):
        make(name)(torch.zeros(feature), torch.zeros(guide))


def test_guide_channels(name):
    """Where the guide's values count, so do its channels; elsewhere it may have any."""
    module = make(name)
    inputs = torch.zeros(1, 32, 4, 4), torch.zeros(1, 31, 8, 8)
    if module.needs_guide:
        with pytest.raises(ValueError, match='was built for a guide of 32 channels, got 31'):
            module(*inputs)
    else:
        assert module(*inputs).shape == (1, 32, 8, 8)


@pytest.mark.parametrize('option', ['in_channels', 'guide_channels'])
def test_bad_channels(name, option):
    kind = UPSAMPLERS[name]
    with pytest.raises(ValueError, match=f'{option} must be a positive integer, got 0'):
        kind(**{'in_channels': CHANNELS, option: 0})
