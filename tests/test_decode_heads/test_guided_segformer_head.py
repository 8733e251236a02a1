# SPDX-License-Identifier: Apache-2.0
"""GuidedSegformerHead against mmseg's SegformerHead, the published wiring and the published key names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmseg')
from decode_head_helpers import CHANNELS, Bilinear, levels, randomize
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.utils import resize

from sapa_mm.decode_heads import GuidedSegformerHead

SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)


def build(kind=GuidedSegformerHead, channels=CHANNELS, **kwargs):
    torch.manual_seed(0)
    return kind(
        in_channels=channels,
        in_index=list(range(len(channels))),
        channels=16,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        dropout_ratio=0.1,
        align_corners=False,
        **kwargs,
    )


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_without_upsampler_is_the_parent(training):
    parent, child = randomize(build(SegformerHead)), build()
    child.load_state_dict(parent.state_dict(), strict=True)
    outs = []
    for head in (parent, child):
        torch.manual_seed(1)  # dropout
        outs.append(head.train(training)(levels()))
    assert torch.equal(*outs) and outs[0].shape == (2, 5, 33, 47)


def test_one_step_with_a_bilinear_stub_is_the_parent():
    """With two levels the chain is one step, which the parent takes too; longer chains differ by what they are for."""
    parent = randomize(build(SegformerHead, CHANNELS[:2]))
    child = build(channels=CHANNELS[:2], upsample_cfg=SAPA)
    assert len(child.upsamplers) == 1
    child.upsamplers = nn.ModuleList([Bilinear()])
    child.load_state_dict(parent.state_dict(), strict=True)
    inputs = levels(channels=CHANNELS[:2])
    assert torch.equal(child.eval()(inputs), parent.eval()(inputs))


@pytest.mark.parametrize('published', [False, True], ids=['mmseg_form', 'published_form'])
def test_wiring(published):
    """The six steps and their numbers as published; what is concatenated, in which order."""
    head = build(upsample_cfg=SAPA, published_form=published).eval()
    levels_in, seen = levels(), {}
    head.fusion_conv.register_forward_pre_hook(lambda _, args: seen.update(fused=args[0]))
    with torch.no_grad():
        head(levels_in)
        e1, e2, e3, e4 = (conv(x) for conv, x in zip(head.convs, levels_in))
        up = head.upsamplers
        out4 = up[2](up[1](up[0](e4, e3), e2), e1)
        out3 = up[4](up[3](e3, e2), e1)
        out2 = up[5](e2, e1)
    expected = [out4, out3, out2, e1] if published else [e1, out2, out3, out4]
    assert torch.equal(seen['fused'], torch.cat(expected, 1))
    assert len({id(u) for u in up}) == len(up) == 6


@pytest.mark.parametrize('published', [False, True], ids=['mmseg_form', 'published_form'])
def test_form_of_the_projections(published):
    """Published: plain linear maps; mmseg's: BN and ReLU after each. The fusion has both in both."""
    head = build(upsample_cfg=SAPA, published_form=published)
    for conv in head.convs:
        assert (conv.with_norm, conv.with_activation, conv.conv.bias is None) == ((not published,) * 3)
    assert head.fusion_conv.with_norm and head.fusion_conv.with_activation and head.fusion_conv.conv.bias is None


def test_published_form_without_upsampler():
    """The baseline of the published table: three bilinear resizes, coarsest first."""
    head, inputs = randomize(build(published_form=True)).eval(), levels()
    with torch.no_grad():
        projected = [
            torch.einsum('dc,nchw->ndhw', conv.conv.weight[:, :, 0, 0], x) + conv.conv.bias[:, None, None]
            for conv, x in zip(head.convs, inputs)
        ]
        fused = torch.cat([resize(x, (33, 47), mode='bilinear') for x in reversed(projected)], 1)
        expected = head.conv_seg(head.fusion_conv(fused))
        torch.testing.assert_close(head(inputs), expected)


def test_parent_checkpoint_loads():
    parent, child = build(SegformerHead), build(upsample_cfg=SAPA)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {name for name in child.state_dict() if name.startswith('upsamplers.')} != set()


@pytest.mark.parametrize('layout', ['released', 'log'])
def test_published_checkpoint_loads(layout):
    """Linear projections, `linear_*` names, a `conv_seg` that the published head has and never uses."""
    source = randomize(build(upsample_cfg=SAPA, published_form=True)).eval()
    target = build(upsample_cfg=SAPA, published_form=True).eval()
    renamed = {'convs.': 'linear_c', 'fusion_conv.': 'linear_fuse.', 'conv_seg.': 'linear_pred.'}
    log = {'.qy.': '.q.proj_y.', '.qx.': '.q.proj_x.', '.gate.': '.q.gate.', '.k.': '.k.proj.'}
    published = {}
    for name, x in source.state_dict().items():
        for old, new in {**renamed, **(log if layout == 'log' else {})}.items():
            name = name.replace(old, new) if old in name and name.startswith(('upsamplers', *renamed)) else name
        if name.startswith('linear_c'):
            number, _, kind = name.removeprefix('linear_c').split('.')
            name, x = f'linear_c{int(number) + 1}.proj.{kind}', x.flatten(1) if kind == 'weight' else x
        elif name.startswith('upsamplers') and x.dim() == 4:
            x = x.flatten(1)
        published[f'decode_head.{name}'] = x
    published['decode_head.conv_seg.weight'] = torch.full((5, 128, 1, 1), float('nan'))
    published['decode_head.conv_seg.bias'] = torch.full((5,), float('nan'))
    assert {'decode_head.linear_c4.proj.weight', 'decode_head.linear_fuse.bn.running_mean'} <= published.keys()
    assert ('decode_head.upsamplers.5.q.proj_x.weight' in published) == (layout == 'log')
    nn.ModuleDict(dict(decode_head=target)).load_state_dict(published, strict=True)
    assert torch.equal(target(levels()), source(levels()))


def test_own_checkpoint_round_trip():
    """Without `linear_pred` nothing is renamed: `conv_seg` is the classifier."""
    source, target = (randomize(build(upsample_cfg=SAPA, published_form=True)).eval() for _ in range(2))
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(target(levels()), source(levels()))


@pytest.mark.parametrize('size', [(33, 47), (64, 64), (37, 25), (7, 100)], ids=str)
def test_any_level_sizes(size):
    out = build(upsample_cfg=SAPA)(levels(*size))
    assert out.shape == (2, 5, *size) and out.isfinite().all()


@pytest.mark.parametrize('published', [False, True], ids=['mmseg_form', 'published_form'])
@pytest.mark.parametrize('similarity', ['inner', 'bilinear', 'gated', 'plain'])
def test_every_parameter_gets_a_gradient(similarity, published):
    head = build(upsample_cfg=dict(type='sapa_mm.SAPA', similarity=similarity), published_form=published)
    head.init_weights()
    logits = head(levels())
    labels = torch.randint(0, 5, (2, 33, 47), generator=torch.Generator().manual_seed(0))
    F.cross_entropy(logits, labels).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_init_weights():
    """The parent's rules for its own layers, the published ones for the upsamplers."""
    parent, child = build(SegformerHead), build(upsample_cfg=dict(SAPA, embed_dims=64))
    before = parent.conv_seg.weight.detach().clone()
    for head in (parent, child):
        torch.manual_seed(3)
        head.init_weights()
    theirs, ours = parent.state_dict(), child.state_dict()
    assert not torch.equal(before, parent.conv_seg.weight)
    assert all(torch.equal(x, ours[name]) for name, x in theirs.items())
    for name, x in ours.items():
        if name.startswith('upsamplers.') and name.endswith(('qy.weight', 'qx.weight', 'k.weight')):
            assert 0.017 < x.std() < 0.023, name
        if name.startswith('upsamplers.') and name.endswith('bias'):
            assert not x.any(), name


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

    head = MODELS.build(
        dict(
            type='sapa_mm.GuidedSegformerHead',
            in_channels=CHANNELS,
            in_index=[0, 1, 2, 3],
            channels=16,
            num_classes=5,
            upsample_cfg=SAPA,
        )
    )
    assert type(head) is GuidedSegformerHead
