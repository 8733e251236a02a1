# SPDX-License-Identifier: Apache-2.0
"""GuidedPAFPN, GuidedYOLOXPAFPN and GuidedCSPNeXtPAFPN against their parents in mmdet."""

import warnings

import pytest
import torch
from torch import nn

import sapa_mm

necks = pytest.importorskip('mmdet.models').necks
SAPA = dict(type='SAPA', embed_dims=8)
CHANNELS = [8, 12, 16, 20]
# every way of the parent to end its pyramid
OPTIONS = {
    'max_pool': dict(num_outs=6),
    'on_input_relu': dict(num_outs=6, add_extra_convs='on_input', relu_before_extra_convs=True),
    'on_lateral': dict(num_outs=6, add_extra_convs='on_lateral'),
    'on_output': dict(num_outs=6, add_extra_convs='on_output'),
    'start_level': dict(num_outs=4, start_level=1, add_extra_convs=True),
    'end_level': dict(num_outs=2, start_level=1, end_level=2),
    'norms': dict(num_outs=4, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'), no_norm_on_lateral=True),
}
YOLO = {
    'YOLOX': ('YOLOXPAFPN', {}),
    'YOLOX-depthwise': ('YOLOXPAFPN', dict(use_depthwise=True, num_csp_blocks=1)),
    'CSPNeXt': ('CSPNeXtPAFPN', dict(num_csp_blocks=1, expand_ratio=0.5)),
}


def levels(height=32, width=48, batch=2):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), generator=generator)
        for i, c in enumerate(CHANNELS)
    ]


def pair(name, **options):
    """The parent and the child with the parent's weights, which are not those of any initialisation."""
    torch.manual_seed(0)
    parent = getattr(necks, name)(CHANNELS, 16, **{k: v for k, v in options.items() if k != 'upsample_cfg'})
    for parameter in parent.parameters():
        nn.init.normal_(parameter, std=0.3)
    child = getattr(sapa_mm, f'Guided{name}')(CHANNELS, 16, **options)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('upsamplers.') for key in missing)
    return parent.eval(), child.eval()


def assert_equal(actual, expected):
    assert isinstance(actual, tuple)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('upsample_cfg', [None, dict(type='Nearest')], ids=['parent', 'Nearest'])
@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_pafpn_is_the_parent(options, upsample_cfg):
    parent, child = pair('PAFPN', upsample_cfg=upsample_cfg, **options)
    assert isinstance(child, necks.PAFPN) and isinstance(child, sapa_mm.GuidedFPN)
    for size in ((32, 48), (33, 47)):
        assert_equal(child(levels(*size)), parent(levels(*size)))


@pytest.mark.parametrize('upsample_cfg', [None, dict(type='Nearest'), dict(scale_factor=2, mode='nearest')], ids=str)
@pytest.mark.parametrize('name, options', YOLO.values(), ids=YOLO)
def test_yolo_is_the_parent(name, options, upsample_cfg):
    parent, child = pair(name, upsample_cfg=upsample_cfg, **options)
    assert_equal(child(levels()), parent(levels()))


def test_interpolation_options_reach_the_parent():
    parent, child = pair('YOLOXPAFPN', upsample_cfg=dict(scale_factor=2, mode='bilinear'))
    assert child.upsample.mode == 'bilinear' and child.upsamplers is None
    assert not torch.equal(child(levels())[0], parent(levels())[0])


@pytest.mark.parametrize('name, options', [*YOLO.values(), ('PAFPN', dict(num_outs=5))], ids=[*YOLO, 'PAFPN'])
def test_odd_sizes_and_steps(name, options):
    """Each step has its own upsampler, coarsest first in YOLO's necks as their layers, and gives its level's size."""
    _, child = pair(name, upsample_cfg=SAPA, **options)
    seen = []
    for i, upsampler in enumerate(child.upsamplers):
        upsampler.register_forward_hook(lambda m, inputs, out, i=i: seen.append((i, inputs[1].shape[1], out.shape[2:])))
    outs = child(levels(33, 47))
    assert [tuple(out.shape[2:]) for out in outs[:4]] == [(33, 47), (17, 24), (9, 12), (5, 6)]
    steps = [(9, 12), (17, 24), (33, 47)]
    if name == 'PAFPN':
        assert seen == [(2 - i, 16, size) for i, size in enumerate(steps)]
    else:
        assert seen == [(i, CHANNELS[2 - i], size) for i, size in enumerate(steps)]
    with pytest.raises(ValueError, match=f'Guided{name} was built for 4 levels, got 3'):
        child(levels()[:3])


def test_init_weights():
    """The parent's rule runs over all convolutions; the upsamplers have their own again."""
    for name in ('YOLOXPAFPN', 'PAFPN'):
        options = dict(num_outs=4) if name == 'PAFPN' else {}
        _, child = pair(name, upsample_cfg=dict(SAPA, embed_dims=64), **options)
        child.init_weights()
        for upsampler in child.upsamplers:
            assert 0.015 < upsampler.k.weight.std() < 0.025 and not upsampler.k.bias.any()


@pytest.mark.parametrize(
    'name, options, error, message',
    [
        ('PAFPN', dict(num_outs=4, upsample_cfg=dict(mode='bilinear')), TypeError, "needs a 'type', as PAFPN has no"),
        ('PAFPN', dict(num_outs=5, extra_in_path=True), TypeError, 'extra_in_path'),
        ('YOLOXPAFPN', dict(upsample_cfg=dict(similarity='inner')), TypeError, "got 'similarity'"),
        ('CSPNeXtPAFPN', dict(upsample_cfg=dict(type='SAPA', mode='nearest')), TypeError, "'mode'.* _delete_=True"),
    ],
    ids=str,
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(sapa_mm, f'Guided{name}')(CHANNELS, 16, **options)


def test_guided_fpn_in_the_place_of_a_pafpn_warns():
    """What can be seen of the path that is gone are its weights."""
    state = {f'neck.{key}': x for key, x in necks.PAFPN(CHANNELS, 16, 4).state_dict().items()}
    fpn = nn.ModuleDict(dict(neck=sapa_mm.GuidedFPN(CHANNELS, 16, 4, upsample_cfg=SAPA)))
    with pytest.warns(UserWarning, match='GuidedFPN .* leaves out its bottom-up path .* sapa_mm.GuidedPAFPN keeps it'):
        fpn.load_state_dict(state, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        nn.ModuleDict(dict(neck=sapa_mm.GuidedPAFPN(CHANNELS, 16, 4))).load_state_dict(state)
        fpn.load_state_dict({f'neck.{key}': x for key, x in necks.FPN(CHANNELS, 16, 4).state_dict().items()}, False)
