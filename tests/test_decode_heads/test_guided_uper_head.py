# SPDX-License-Identifier: Apache-2.0
"""GuidedUPerHead against mmseg's UPerHead."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmseg')
from decode_head_helpers import CHANNELS, Bilinear, levels, randomize
from mmseg.models.decode_heads import UPerHead

from sapa_mm.decode_heads import GuidedUPerHead

SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)


def build(kind=GuidedUPerHead, channels=CHANNELS, **kwargs):
    torch.manual_seed(0)
    options = dict(pool_scales=(1, 2), norm_cfg=dict(type='BN'), dropout_ratio=0.1, align_corners=False)
    return kind(
        in_channels=channels, in_index=list(range(len(channels))), channels=16, num_classes=5, **options, **kwargs
    )


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_without_upsampler_is_the_parent(training):
    parent, child = randomize(build(UPerHead)), build()
    child.load_state_dict(parent.state_dict(), strict=True)
    outs = []
    for head in (parent, child):
        torch.manual_seed(1)  # dropout
        outs.append(head.train(training)(levels()))
    assert torch.equal(*outs) and outs[0].shape == (2, 5, 33, 47)


@pytest.mark.parametrize('size', [(33, 47), (64, 32), (37, 25), (8, 3)], ids=str)
@pytest.mark.parametrize('count', [2, 4], ids=lambda count: f'{count}_levels')
def test_with_bilinear_stubs_is_the_parent(size, count):
    """The forward that calls the upsamplers differs from the parent's in nothing else."""
    channels = CHANNELS[-count:]
    parent, child = randomize(build(UPerHead, channels)), build(channels=channels, upsample_cfg=SAPA)
    assert len(child.upsamplers) == count - 1
    child.upsamplers = nn.ModuleList(Bilinear() for _ in child.upsamplers)
    child.load_state_dict(parent.state_dict(), strict=True)
    inputs = levels(*size, channels=channels)
    assert torch.equal(child.eval()(inputs), parent.eval()(inputs))


def test_upsampler_i_takes_lateral_i_plus_1_to_lateral_i():
    """Coarsest first; the feature is the sum so far, at the top the pooled pyramid, the guide the lateral itself."""
    head, inputs, seen = randomize(build(upsample_cfg=SAPA)).eval(), levels(), {}
    for i, conv in enumerate(head.fpn_convs):
        conv.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0]}))
    with torch.no_grad():
        head(inputs)
        expected = head.psp_forward(inputs)
        for i in (2, 1, 0):
            lateral = head.lateral_convs[i](inputs[i])
            expected = lateral + head.upsamplers[i](expected, lateral)
            assert torch.equal(seen[i], expected)
    assert len({id(u) for u in head.upsamplers}) == len(head.upsamplers) == 3


def test_parent_checkpoint_loads():
    parent, child = build(UPerHead), build(upsample_cfg=SAPA)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {name for name in child.state_dict() if name.startswith('upsamplers.')} != set()


def test_published_key_prefix_loads():
    """The segmentation experiments: `decode_head.upsample_modules`."""
    source, target = (randomize(build(upsample_cfg=SAPA)).eval() for _ in range(2))
    state = {
        f'decode_head.{name}'.replace('upsamplers.', 'upsample_modules.'): x for name, x in source.state_dict().items()
    }
    assert 'decode_head.upsample_modules.2.qx.weight' in state
    nn.ModuleDict(dict(decode_head=target)).load_state_dict(state, strict=True)
    assert torch.equal(target(levels()), source(levels()))


@pytest.mark.parametrize('similarity', ['inner', 'bilinear', 'gated', 'plain'])
def test_every_parameter_gets_a_gradient(similarity):
    head = build(upsample_cfg=dict(type='sapa_mm.SAPA', similarity=similarity))
    head.init_weights()
    labels = torch.randint(0, 5, (2, 33, 47), generator=torch.Generator().manual_seed(0))
    F.cross_entropy(head(levels()), labels).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_init_weights():
    """The parent's rules for its own layers, the published ones for the upsamplers."""
    parent, child = build(UPerHead), build(upsample_cfg=dict(SAPA, embed_dims=64))
    for head in (parent, child):
        for parameter in head.parameters():
            nn.init.constant_(parameter, 1.5)
        torch.manual_seed(3)
        head.init_weights()
    theirs, ours = parent.state_dict(), child.state_dict()
    assert theirs['conv_seg.weight'].std() < 0.02
    assert all(torch.equal(x, ours[name]) for name, x in theirs.items())
    for name in ('qy', 'qx', 'k'):
        assert 0.017 < ours[f'upsamplers.2.{name}.weight'].std() < 0.023, name
        assert not ours[f'upsamplers.2.{name}.bias'].any(), name


@pytest.mark.parametrize(
    'upsample_cfg, error, message',
    [
        (dict(type='sapa_mm.SAPA', similarty='inner'), TypeError, "did you mean 'similarity'"),
        (dict(similarity='inner'), TypeError, "upsample_cfg must be a dict with a 'type'"),
        (dict(type='sapa_mm.SAPA', guide_channels=8), ValueError, 'guide_channels must be 16 here, got 8'),
    ],
    ids=str,
)
def test_bad_upsample_cfg(upsample_cfg, error, message):
    with pytest.raises(error, match=message):
        build(upsample_cfg=upsample_cfg)


def test_builds_by_its_scoped_name():
    from mmseg.registry import MODELS

    assert MODELS.get('sapa_mm.GuidedUPerHead') is GuidedUPerHead
