# SPDX-License-Identifier: Apache-2.0
"""GuidedFPNHead and GuidedDepthwiseSeparableASPPHead against their parents in mmseg."""

import pytest
import torch

import sapa_mm

heads = pytest.importorskip('mmseg.models').decode_heads
from decode_head_helpers import CHANNELS, levels, randomize  # noqa: E402

SAPA = dict(type='SAPA', embed_dims=8)
COMMON = dict(channels=16, num_classes=3)
OPTIONS = {
    'FPNHead': dict(COMMON, in_channels=CHANNELS, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32]),
    'DepthwiseSeparableASPPHead': dict(
        COMMON, in_channels=CHANNELS[3], in_index=3, c1_in_channels=CHANNELS[0], c1_channels=6, dilations=(1, 2)
    ),
}


def pair(name, **options):
    torch.manual_seed(0)
    options = {**OPTIONS[name], **options}
    parent = randomize(getattr(heads, name)(**{k: v for k, v in options.items() if k != 'upsample_cfg'}))
    child = getattr(sapa_mm, f'Guided{name}')(**options)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('upsamplers.') for key in missing)
    return parent.eval(), child.eval()


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('name', OPTIONS)
def test_without_upsampler_and_with_bilinear_it_is_the_parent(name, align_corners):
    bilinear = dict(type='Bilinear', align_corners=align_corners)
    for upsample_cfg in (None, bilinear):
        parent, child = pair(name, upsample_cfg=upsample_cfg, align_corners=align_corners)
        torch.testing.assert_close(child(levels(32, 48)), parent(levels(32, 48)), rtol=0, atol=0)
    odd = levels(33, 47)
    if name == 'FPNHead':  # the parent doubles, then resizes
        assert child(odd).shape == parent(odd).shape
    else:
        torch.testing.assert_close(child(odd), parent(odd), rtol=0, atol=0)


def test_fpn_head_climbs_step_by_step():
    """Six upsamplers; each guide is what the first convolution makes of the level that is reached."""
    _, child = pair('FPNHead', upsample_cfg=SAPA)
    inputs = levels()
    guides = [branch[0](x) for branch, x in zip(child.scale_heads, inputs)]
    seen = []
    for i, upsampler in enumerate(child.upsamplers):
        upsampler.register_forward_pre_hook(lambda m, args, i=i: seen.append((i, args[1])))
    child(inputs)
    assert [i for i, _ in seen] == list(range(6))
    for (_, guide), level in zip(seen, (0, 1, 0, 2, 1, 0), strict=True):
        assert torch.equal(guide, guides[level])


@pytest.mark.parametrize('name', OPTIONS)
def test_every_parameter_gets_a_gradient(name):
    _, child = pair(name, upsample_cfg=SAPA)
    child.init_weights()
    child.train()(levels()).square().mean().backward()
    for key, parameter in child.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key
    assert 0.01 < child.upsamplers[0].k.weight.std() < 0.03


@pytest.mark.parametrize(
    'name, options, message',
    [
        (
            'FPNHead',
            dict(feature_strides=[4, 16, 32, 64]),
            r'strides that double at every level, got \[4, 16, 32, 64\]',
        ),
        ('DepthwiseSeparableASPPHead', dict(c1_in_channels=0, c1_channels=0), 'fine level .* got c1_in_channels=0'),
        ('DepthwiseSeparableASPPHead', dict(upsample_cfg=dict(type='SAPA', similarity='inner')), 'got 6 and 16'),
    ],
    ids=str,
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(sapa_mm, f'Guided{name}')(**{**OPTIONS[name], 'upsample_cfg': SAPA, **options})
