# SPDX-License-Identifier: Apache-2.0
"""What holds for every registered upsampler, alone and in every neck and head; a new one joins by being registered."""

import inspect
import warnings
from importlib import import_module

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from sapa_mm.registry import MODELS
from sapa_mm.upsamplers import UPSAMPLERS, VARIANTS, BaseUpsampler, build_upsampler
from sapa_mm.upsamplers.base import warn_of_swapped_arguments

PLACES = tuple(f'sapa_mm.{place}' for place in ('necks', 'decode_heads', 'pixel_decoders', 'backbones'))
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
YOLO = dict(in_channels=[CHANNELS, CHANNELS, 8], out_channels=4, num_csp_blocks=1)
# What each neck or head needs beside `upsample_cfg`: its toolbox, options, further arguments of forward.
DECODERS = {
    'GuidedFPN': ('mmdet.models', dict(in_channels=IN_CHANNELS, out_channels=CHANNELS, num_outs=5), ()),
    'GuidedPAFPN': ('mmdet.models', dict(in_channels=IN_CHANNELS, out_channels=CHANNELS, num_outs=5), ()),
    'GuidedYOLOXPAFPN': ('mmdet.models', YOLO, ()),
    'GuidedCSPNeXtPAFPN': ('mmdet.models', YOLO, ()),
    # channels of the encoder's maps differ from step to step: with `conv_first` an upsampler sees one number
    'GuidedUNet': (
        'mmseg.models',
        dict(
            in_channels=4,
            base_channels=CHANNELS,
            num_stages=2,
            strides=(1, 1),
            enc_num_convs=(1, 1),
            dec_num_convs=(1,),
            downsamples=(True,),
            enc_dilations=(1, 1),
            dec_dilations=(1,),
            conv_first=True,
        ),
        (),
    ),
    'GuidedDepthwiseSeparableASPPHead': (
        'mmseg.models',
        dict(
            HEAD,
            in_channels=IN_CHANNELS[-1],
            in_index=3,
            align_corners=False,
            c1_in_channels=IN_CHANNELS[0],
            c1_channels=CHANNELS,
            dilations=(1, 2),
        ),
        (),
    ),
    'GuidedFPNHead': ('mmseg.models', dict(HEAD, align_corners=False, feature_strides=[4, 8, 16, 32]), ()),
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


def wake(module):
    """Move weights that begin at 0, as of published offsets: what lies before them would get no gradient yet."""
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    return module


@pytest.fixture(params=UPSAMPLERS)
def name(request):
    return request.param


def levels(channels):
    """Sizes halved and rounded up: 17x21, 9x11, 5x6, 3x3."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, c, -(-SIZE[0] // 2**i), -(-SIZE[1] // 2**i), generator=generator) for i, c in enumerate(channels)
    ]


def inputs_of(decoder):
    """The backbone's maps, or the image of a backbone."""
    channels = DECODERS[decoder][1]['in_channels']
    if decoder == 'GuidedUNet':
        return levels([channels])[0]
    return levels(channels if isinstance(channels, list) else IN_CHANNELS)


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
    wake(module.upsamplers)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    inputs = inputs_of(decoder)
    coarsest = (inputs if torch.is_tensor(inputs) else inputs[-1]).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        outs = tensors(module(inputs, *arguments))
    assert max(outs, key=lambda x: x.shape[2]).shape[2:] == SIZE
    sum(out.float().square().mean() for out in outs).backward()
    optimizer.step()

    assert coarsest.grad.any() and coarsest.grad.isfinite().all()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        if 'upsamplers' in parameter_name:
            assert parameter.grad.any(), parameter_name
        moved = not torch.equal(parameter, before[parameter_name])
        assert moved or parameter.grad.abs().max() < 1e-6 * parameter.abs().max(), parameter_name


@pytest.mark.parametrize(
    'decoder',
    ['GuidedFPN', 'GuidedPAFPN', 'GuidedUPerHead', 'GuidedPixelDecoder', 'GuidedTransformerEncoderPixelDecoder']
    + ['GuidedMSDeformAttnPixelDecoder'],
)
def test_decoders_that_add_a_lateral_leave_that_to_the_upsampler(decoder, monkeypatch):
    """Every step is one call of `fuse`, whose result goes on; by default it is the sum."""
    toolbox, options, arguments = DECODERS[decoder]
    pytest.importorskip(toolbox)
    cfg = dict(type=f'sapa_mm.{decoder}', upsample_cfg=dict(type='sapa_mm.Bilinear'), **options)
    module = MODELS.build(ConfigDict(cfg)).eval()
    inputs = inputs_of(decoder)
    expected = tensors(module(inputs, *arguments))
    sizes = []

    def fuse(self, feature, guide):
        sizes.append(tuple(guide.shape[2:]))
        return self(feature, guide) + guide

    monkeypatch.setattr(BaseUpsampler, 'fuse', fuse)
    torch.testing.assert_close(tensors(module(inputs, *arguments)), expected)
    assert len(sizes) == len(module.upsamplers) and sizes[-1] == SIZE
    monkeypatch.setattr(BaseUpsampler, 'fuse', lambda self, feature, guide: 0 * guide)
    outs = tensors(module(inputs, *arguments))
    assert not any(torch.equal(out, other) for out, other in zip(outs, expected) if out.shape[2:] == SIZE)


@pytest.mark.parametrize(
    'decoder', ['GuidedYOLOXPAFPN', 'GuidedCSPNeXtPAFPN', 'GuidedUNet', 'GuidedDepthwiseSeparableASPPHead']
)
def test_decoders_that_concatenate_take_what_the_upsampler_gives(decoder, monkeypatch):
    """Every step is one call of `pair`, both of whose maps go on; by default the guide is one."""
    toolbox, options, arguments = DECODERS[decoder]
    pytest.importorskip(toolbox)
    cfg = dict(type=f'sapa_mm.{decoder}', upsample_cfg=dict(type='sapa_mm.Bilinear'), **options)
    module = MODELS.build(ConfigDict(cfg))
    module.eval()
    inputs = inputs_of(decoder)
    expected = tensors(module(inputs, *arguments))
    sizes = []

    def pair(self, feature, guide):
        sizes.append(tuple(guide.shape[2:]))
        return self(feature, guide), guide

    monkeypatch.setattr(BaseUpsampler, 'pair', pair)
    torch.testing.assert_close(tensors(module(inputs, *arguments)), expected)
    assert len(sizes) == len(module.upsamplers) and sizes[-1] == SIZE
    for change in (lambda x, guide: (0 * x, guide), lambda x, guide: (x, 0 * guide)):
        monkeypatch.setattr(
            BaseUpsampler, 'pair', lambda self, feature, guide, change=change: change(self(feature, guide), guide)
        )
        outs = tensors(module(inputs, *arguments))
        assert not any(torch.equal(out, other) for out, other in zip(outs, expected) if out.shape[2:] == SIZE)


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_any_size(name, sizes):
    feature, guide = maps(*sizes)
    out = make(name)(feature, guide)
    assert out.shape == (2, CHANNELS, *sizes[1]) and out.isfinite().all()
    assert out.std() > 0


def test_a_size_in_place_of_the_guide(name):
    """Upsamplers of the feature alone take it, or a ratio, or their own; the others ask for the guide."""
    module, (feature, guide) = make(name), maps((4, 3), (9, 8))
    if module.needs_guide:
        for options in ({}, dict(size=(9, 8)), dict(scale_factor=2)):
            with pytest.raises(TypeError, match=rf'{name} needs a guide: call it with \(feature, guide\)'):
                module(feature, **options)
        return
    assert torch.equal(module(feature, size=(9, 8)), module(feature, guide))
    assert module(feature, scale_factor=2.5).shape == (2, CHANNELS, 10, 7)
    if hasattr(module, 'scale_factor'):
        assert module(feature).shape == (2, CHANNELS, 8, 6)
    else:
        with pytest.raises(TypeError, match=rf'{name} needs a guide, size=\(H, W\) or scale_factor='):
            module(feature)
    for more in (dict(guide=guide, size=(9, 8)), dict(size=(9, 8), scale_factor=2)):
        with pytest.raises(TypeError, match=f'{name} takes one of guide, size and scale_factor, got more'):
            module(feature, **more)


def test_swapped_arguments_are_seen_once(name):
    """Published code passes the guide first; a map that does not shrink in both directions says nothing."""
    warn_of_swapped_arguments.cache_clear()
    module, (feature, guide) = make(name), maps((4, 3), (8, 6))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module(feature, guide)
        module(feature, feature)
    with pytest.warns(UserWarning, match=rf'{name} got a guide that is smaller .* order is \(feature, guide\)'):
        module(guide, feature)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module(guide, feature)


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
    module, (feature, guide) = wake(make(name)), maps((4, 3), (8, 6))
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


@pytest.mark.parametrize('name', ['DySample', 'FreqFusion', 'DLU', 'FlowAlign'])
def test_nan_positions_do_not_end_the_process(name):
    """torch's grid_sample reads anywhere in the backward of positions that are NaN."""
    module = MODELS.build(dict(VARIANTS[name], in_channels=32))
    feature, guide = torch.full((1, 32, 5, 6), torch.nan, requires_grad=True), torch.randn(1, 32, 10, 12)
    out = module(feature, guide)
    assert out.isnan().any()
    out.sum().backward()
    assert feature.grad is not None
