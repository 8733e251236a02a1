# SPDX-License-Identifier: Apache-2.0
"""GuidedFPN against the FPN of mmdet, and in a process that has only mmseg."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
SAPA = dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=8)
CHANNELS = [8, 12, 16, 20]
# every way of the parent to end its pyramid; two extra convolutions, so that the relu between them counts
OPTIONS = {
    'max_pool': dict(num_outs=6),
    'no_extra': dict(num_outs=4),
    'on_input': dict(num_outs=6, add_extra_convs=True),
    'on_input_relu': dict(num_outs=6, add_extra_convs='on_input', relu_before_extra_convs=True),
    'on_lateral': dict(num_outs=6, add_extra_convs='on_lateral'),
    'on_lateral_relu': dict(num_outs=6, add_extra_convs='on_lateral', relu_before_extra_convs=True),
    'on_output': dict(num_outs=6, add_extra_convs='on_output'),
    'on_output_relu': dict(num_outs=6, add_extra_convs='on_output', relu_before_extra_convs=True),
    'start_level': dict(num_outs=5, start_level=1, add_extra_convs='on_input', relu_before_extra_convs=True),
    'end_level': dict(num_outs=2, start_level=1, end_level=2),
    'norms': dict(
        num_outs=5, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'), no_norm_on_lateral=True, start_level=1
    ),
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def options(request):
    return request.param


@pytest.fixture(scope='module')
def fpn():
    """The parent and the child."""
    pytest.importorskip('mmdet.models')
    from mmdet.models.necks import FPN

    from sapa_mm.necks import GuidedFPN

    assert issubclass(GuidedFPN, FPN)
    return FPN, GuidedFPN


def levels(height=33, width=47, batch=2):
    """Backbone maps whose sizes are halved and rounded up: 33x47, 17x24, 9x12, 5x6."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), generator=generator)
        for i, c in enumerate(CHANNELS)
    ]


def build(kind, **kwargs):
    torch.manual_seed(0)
    return kind(CHANNELS, 16, **kwargs)


class Nearest(nn.Module):
    """The parent's step in the shape of an upsampler."""

    def forward(self, feature, guide):
        return F.interpolate(feature, size=guide.shape[2:], mode='nearest')

    def fuse(self, feature, guide):
        return guide + self(feature, guide)


def assert_equal(actual, expected):
    assert isinstance(actual, tuple) and len(actual) == len(expected)
    for ours, theirs in zip(actual, expected):
        assert torch.equal(ours, theirs)


def test_without_upsampler_is_the_parent(fpn, options):
    parent, child = (build(kind, **options) for kind in fpn)
    for parameter in parent.parameters():
        nn.init.normal_(parameter)
    child.load_state_dict(parent.state_dict(), strict=True)
    assert_equal(child(levels()), parent(levels()))


@pytest.mark.parametrize('interpolation', [dict(mode='bilinear'), dict(scale_factor=2, mode='nearest')], ids=str)
def test_interpolation_options_reach_the_parent(fpn, interpolation):
    parent, child = (build(kind, num_outs=4, upsample_cfg=interpolation) for kind in fpn)
    child.load_state_dict(parent.state_dict(), strict=True)
    assert_equal(child(levels(32, 48)), parent(levels(32, 48)))


def test_with_nearest_stubs_is_the_parent(fpn, options):
    """The forward that calls the upsamplers differs from the parent's in nothing else."""
    FPN, GuidedFPN = fpn
    parent, child = build(FPN, **options), build(GuidedFPN, upsample_cfg=SAPA, **options)
    child.upsamplers = nn.ModuleList(Nearest() for _ in child.upsamplers)
    child.load_state_dict(parent.state_dict(), strict=True)
    inputs = levels()
    assert_equal(child(inputs), parent(inputs))


def test_upsampler_i_takes_lateral_i_plus_1_to_lateral_i(fpn):
    """Three steps, coarsest first, the feature the sum so far, the guide the lateral itself."""
    child = build(fpn[1], num_outs=4, upsample_cfg=SAPA)
    inputs = levels()
    laterals = [conv(x) for conv, x in zip(child.lateral_convs, inputs)]
    with torch.no_grad():
        for i in (2, 1, 0):
            laterals[i] = laterals[i] + child.upsamplers[i](laterals[i + 1], laterals[i])
        expected = tuple(conv(x) for conv, x in zip(child.fpn_convs, laterals))
        assert_equal(child(inputs), expected)


def test_parent_checkpoint_loads(fpn, options):
    FPN, GuidedFPN = fpn
    parent, child = build(FPN, **options), build(GuidedFPN, upsample_cfg=SAPA, **options)
    missing, unexpected = child.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {name for name in child.state_dict() if name.startswith('upsamplers.')} != set()
    steps = len(child.lateral_convs) - 1
    assert {name.split('.')[1] for name in missing} == {str(i) for i in range(steps)}


def test_published_key_prefix_loads(fpn):
    """The detection experiments: `upsample_modules`."""
    source, target = (build(fpn[1], num_outs=5, upsample_cfg=SAPA) for _ in range(2))
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = {name.replace('upsamplers.', 'upsample_modules.'): x for name, x in source.state_dict().items()}
    assert 'upsample_modules.2.qx.weight' in state
    nn.Sequential(target).load_state_dict({f'0.{name}': x for name, x in state.items()}, strict=True)
    assert_equal(target(levels()), source(levels()))


@pytest.mark.parametrize('size', [(33, 47), (64, 64), (37, 25), (1, 1), (100, 3)], ids=str)
def test_any_level_sizes(fpn, size):
    child = build(fpn[1], num_outs=5, upsample_cfg=SAPA)
    inputs = levels(*size)
    outs = child(inputs)
    assert [out.shape for out in outs[:4]] == [(2, 16, *x.shape[2:]) for x in inputs]
    assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize('similarity', ['inner', 'bilinear', 'gated', 'plain'])
@pytest.mark.parametrize('extra', ['max_pool', 'on_input_relu'])
def test_every_parameter_gets_a_gradient(fpn, similarity, extra):
    child = build(fpn[1], upsample_cfg=dict(type='sapa_mm.SAPA', similarity=similarity), **OPTIONS[extra])
    child.init_weights()
    sum(out.square().mean() for out in child(levels())).backward()
    for name, parameter in child.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_init_weights(fpn):
    """The parent's Xavier for its own convolutions; 0.02, not Xavier's 0.2, for the upsamplers."""
    FPN, GuidedFPN = fpn
    parent, child = build(FPN, num_outs=5), build(GuidedFPN, num_outs=5, upsample_cfg=dict(SAPA, embed_dims=64))
    before = parent.state_dict()['lateral_convs.0.conv.weight'].clone()
    for neck in (parent, child):
        torch.manual_seed(3)
        neck.init_weights()
    theirs, ours = parent.state_dict(), child.state_dict()
    assert not torch.equal(before, theirs['lateral_convs.0.conv.weight'])
    assert all(torch.equal(x, ours[name]) for name, x in theirs.items())
    for name, x in ours.items():
        if name.startswith('upsamplers.') and name.endswith(('q.weight', 'qy.weight', 'qx.weight', 'k.weight')):
            assert 0.017 < x.std() < 0.023, name
        if name.startswith('upsamplers.') and name.endswith('bias'):
            assert not x.any(), name


@pytest.mark.parametrize(
    'upsample_cfg, error, message',
    [
        (dict(type='sapa_mm.SAPA', similarty='inner'), TypeError, "did you mean 'similarity'"),
        (dict(similarity='inner'), TypeError, "upsample_cfg needs a 'type'.*got 'similarity'"),
        (dict(type='sapa_mm.SAPA', out_channels=8), ValueError, 'out_channels must be 16 here, got 8'),
    ],
    ids=str,
)
def test_bad_upsample_cfg(fpn, upsample_cfg, error, message):
    with pytest.raises(error, match=message):
        build(fpn[1], num_outs=4, upsample_cfg=upsample_cfg)


def test_wrong_number_of_levels(fpn):
    with pytest.raises(ValueError, match='built for 4 levels, got 3'):
        build(fpn[1], num_outs=4, upsample_cfg=SAPA)(levels()[:3])


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_builds_in_the_scope_of_both_toolboxes(fpn, scope):
    from importlib import import_module

    models = pytest.importorskip(f'{scope}.registry').MODELS
    import_module(f'{scope}.models')
    neck = models.build(
        dict(type='sapa_mm.GuidedFPN', in_channels=CHANNELS, out_channels=16, num_outs=4, upsample_cfg=SAPA)
    )
    assert type(neck) is fpn[1]


WITHOUT_MMDET = """
import sys
sys.modules['mmdet'] = None  # importing it raises ModuleNotFoundError
import torch
from mmseg.models.necks import FPN
from mmseg.registry import MODELS

cfg = dict(type='sapa_mm.GuidedFPN', in_channels=[8, 12, 16], out_channels=8, num_outs=4, add_extra_convs='on_lateral')
parent = FPN(**{k: v for k, v in cfg.items() if k != 'type'})
plain = MODELS.build(cfg)
guided = MODELS.build(dict(cfg, upsample_cfg=dict(type='sapa_mm.SAPA')))
assert isinstance(plain, FPN) and isinstance(guided, FPN)
inputs = [torch.randn(1, 8, 17, 13), torch.randn(1, 12, 9, 7), torch.randn(1, 16, 5, 4)]
plain.load_state_dict(parent.state_dict(), strict=True)
assert all(torch.equal(a, b) for a, b in zip(plain(inputs), parent(inputs)))

missing, unexpected = guided.load_state_dict(parent.state_dict(), strict=False)
assert missing and not unexpected and all(name.startswith('upsamplers.') for name in missing)
outs = guided(inputs)
assert [tuple(x.shape[2:]) for x in outs] == [(17, 13), (9, 7), (5, 4), (3, 2)]
sum(x.square().mean() for x in outs).backward()
assert all(p.grad is not None for p in guided.parameters())
assert not torch.equal(outs[0], parent(inputs)[0])


class Nearest(torch.nn.Module):
    def forward(self, feature, guide):
        return torch.nn.functional.interpolate(feature, size=guide.shape[2:], mode='nearest')

    def fuse(self, feature, guide):
        return guide + self(feature, guide)


guided.upsamplers = torch.nn.ModuleList([Nearest(), Nearest()])
assert all(torch.equal(a, b) for a, b in zip(guided(inputs), parent(inputs)))
print('all of it ran')
"""


def test_as_an_mmseg_neck_without_mmdet():
    pytest.importorskip('mmseg')
    done = subprocess.run([sys.executable, '-c', WITHOUT_MMDET], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip().endswith('all of it ran'), done.stderr[-3000:]


# The levels beyond the backbone's inside the top-down path, as in mmdet's FPN_CARAFE.
EXTRA = dict(num_outs=6, extra_in_path=True)


@pytest.mark.parametrize('options', [dict(num_outs=5), dict(num_outs=6), dict(num_outs=6, start_level=2)], ids=str)
def test_extra_in_path_is_fpn_carafe(fpn, options):
    """Without an upsampler it is mmdet's neck with nearest interpolation, weights and all."""
    from mmdet.models.necks import FPN_CARAFE

    theirs = build(FPN_CARAFE, upsample_cfg=dict(type='nearest'), **options)
    ours = build(fpn[1], extra_in_path=True, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for size in ((33, 47), (64, 64), (37, 25)):
        assert_equal(ours(levels(*size)), theirs(levels(*size)))


def test_extra_in_path_with_norms(fpn):
    """The extra layers have what the parent's have."""
    layers = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
    neck = build(fpn[1], **EXTRA, **layers, no_norm_on_lateral=True)
    assert [(conv.with_norm, conv.with_activation) for conv in neck.lateral_convs] == [(False, True)] * 6
    assert [(conv.with_norm, conv.with_activation) for conv in neck.fpn_convs] == [(True, True)] * 6
    neck = build(fpn[1], **EXTRA, **layers)
    assert all(conv.with_norm and conv.with_activation for conv in neck.lateral_convs)
    assert neck(levels())[5].shape == (2, 16, 2, 2)


def test_extra_in_path_interpolation_options(fpn):
    """The parent's options of `F.interpolate` hold for the extra steps too."""
    inputs = levels(64, 96)
    for interpolation in (dict(mode='bilinear'), dict(scale_factor=2, mode='bilinear')):
        neck = build(fpn[1], num_outs=5, extra_in_path=True, upsample_cfg=interpolation)
        with torch.no_grad():
            top = neck.lateral_convs[4](inputs[3])
            lateral = neck.lateral_convs[3](inputs[3])
            expected = lateral + F.interpolate(top, scale_factor=2, mode='bilinear')
            torch.testing.assert_close(neck(inputs)[3], neck.fpn_convs[3](expected))


def test_extra_in_path_upsamples_every_level(fpn):
    """Five steps for four levels and two more; all sizes odd; the published prefix names all of them."""
    neck = build(fpn[1], upsample_cfg=SAPA, **EXTRA)
    inputs = levels()
    laterals = [conv(x) for conv, x in zip(neck.lateral_convs, inputs)]
    laterals.append(neck.lateral_convs[4](inputs[3]))
    laterals.append(neck.lateral_convs[5](laterals[4]))
    with torch.no_grad():
        for i in (4, 3, 2, 1, 0):
            laterals[i] = laterals[i] + neck.upsamplers[i](laterals[i + 1], laterals[i])
        expected = tuple(conv(x) for conv, x in zip(neck.fpn_convs, laterals))
        assert_equal(neck(inputs), expected)
    assert len(neck.upsamplers) == 5
    published = {name.replace('upsamplers.', 'upsample_modules.'): x for name, x in neck.state_dict().items()}
    assert 'upsample_modules.4.k.weight' in published
    build(fpn[1], upsample_cfg=SAPA, **EXTRA).load_state_dict(published, strict=True)

    neck.init_weights()
    assert 0.01 < neck.upsamplers[4].k.weight.std() < 0.03
    sum(out.square().mean() for out in neck(inputs)).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('upsample_cfg, total', [(None, 46.837), (dict(type='sapa_mm.CARAFE'), 47.133)], ids=str)
def test_published_total_of_four_stages(fpn, upsample_cfg, total):
    """Trained parameters of Faster R-CNN R50 in millions: the tables have 46.8 for nearest and 0.3 more for CARAFE."""
    from mmdet.registry import MODELS
    from mmengine import Config

    model = Config.fromfile(ROOT / 'configs' / 'faster_rcnn' / 'faster-rcnn_r50_fpn-stride64_1x_coco.py').model
    model.backbone.init_cfg = None
    model.neck.upsample_cfg = upsample_cfg
    trained = sum(p.numel() for p in MODELS.build(model).parameters() if p.requires_grad)
    assert round(trained / 1e6, 3) == total


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_outs=5, add_extra_convs='on_input'), "add_extra_convs=False .* got 'on_input'"),
        (dict(num_outs=4), 'more outputs than backbone levels, got False, 4 outputs and 4 levels'),
        (dict(num_outs=2, start_level=1, end_level=2), '2 outputs and 2 levels'),
    ],
    ids=str,
)
def test_extra_in_path_needs_extra_levels(fpn, options, message):
    with pytest.raises(ValueError, match=message):
        build(fpn[1], extra_in_path=True, **options)


def test_retinanet(fpn):
    """mmdet's RetinaNet, whose extra levels are convolutions on the backbone's last map, trains at odd sizes."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine import DefaultScope
    from mmengine.hub import get_config
    from mmengine.structures import InstanceData

    model = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.update(type='sapa_mm.GuidedFPN', in_channels=[64, 128, 256, 512], out_channels=16, upsample_cfg=SAPA)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
    detector.init_weights()
    meta = dict(img_shape=(65, 97), batch_input_shape=(65, 97), pad_shape=(65, 97))
    gt = InstanceData(bboxes=torch.tensor([[4.0, 5, 60, 50]]), labels=torch.tensor([1]))
    loss, _ = detector.parse_losses(
        detector.loss(torch.randn(1, 3, 65, 97), [DetDataSample(gt_instances=gt, metainfo=meta)])
    )
    loss.backward()
    assert loss.isfinite() and len(detector.neck.upsamplers) == 2
    for name, parameter in detector.neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('size', [(64, 96), (65, 97)], ids=str)
def test_semantic_fpn(fpn, size):
    """mmseg's semantic FPN: the pyramid and FPNHead in an EncoderDecoder."""
    pytest.importorskip('mmseg.models')
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    head = dict(
        type='FPNHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32], channels=8,
        num_classes=3, norm_cfg=dict(type='BN'), align_corners=False, loss_decode=dict(type='CrossEntropyLoss'),
    )  # fmt: skip
    neck = dict(
        type='sapa_mm.GuidedFPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=4, upsample_cfg=SAPA
    )
    torch.manual_seed(0)
    model = MODELS.build(
        ConfigDict(
            type='EncoderDecoder', backbone=dict(type='ResNet', depth=18), neck=neck, decode_head=head,
            test_cfg=dict(mode='whole'),
        )
    )  # fmt: skip
    model.init_weights()
    logits = model(torch.randn(2, 3, *size), mode='tensor')
    assert logits.shape == (2, 3, *(-(-side // 4) for side in size))
    F.cross_entropy(logits, torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long)).backward()
    for name, parameter in model.neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
