# SPDX-License-Identifier: Apache-2.0
"""Every config: loads before anything of this package is imported, builds, predicts and takes one training step.

What is smaller than in the config, and nothing else (``shrink``): pretrained weights are not fetched; one block per
stage of MiT and Swin, Swin narrower (32 channels, windows of 4); ResNet-18 for ResNet-50 and 101; a BTS decoder of a
quarter of the channels; VGG-11 of half the channels for VGG-16; one encoder and three decoder layers of Mask2Former
(one per scale, so that each is used) with 5 queries and 64 sampled points, MaskFormer likewise; narrow boxes' layers;
BN for SyncBN, which needs a GPU. Images are 65x97, padded by nothing, so that all levels have odd sizes; Panoptic FPN's
semantic head needs multiples of 32.
"""

import json
import re
import shlex
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from sapa_mm.upsamplers import SAPA, VARIANTS, BaseUpsampler

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.relative_to(ROOT).parts
)
HEIGHT, WIDTH = 65, 97
# Rows of published tables that differ from a variant in an option or in the places: what the upsampler is then.
ROWS = {'CARAFE-neck': 'CARAFE', 'FADE-ungated': 'FADE', 'SAPA-B-d64': 'SAPA-B', 'SAPA-G-shared': 'SAPA-G'}
# How many upsamplers a model has; a pyramid with a level of stride 64 one more.
STEPS = {
    'bts': 4,
    'faster-rcnn': 3,
    'mask-rcnn': 3,
    'panoptic-fpn': 3,
    'mask2former': 1,
    'maskformer': 3,
    'matting': 4,
    'segformer': 6,
    'segnet': 5,
    'upernet': 3,
}
DETECTORS = ('faster-rcnn', 'mask-rcnn', 'panoptic-fpn')

LOAD_ALL = """
import json, sys, traceback
from mmengine import Config
errors = {}
for path in sys.argv[1:]:
    try:
        assert Config.fromfile(path).model.type
    except Exception:
        errors[path] = traceback.format_exc(limit=-3)
imported = [name for name in ('sapa_mm', 'mmseg', 'mmdet', 'mmcv.ops') if name in sys.modules]
print(json.dumps(dict(errors=errors, imported=imported, read=len(sys.argv) - 1)))
"""


@pytest.fixture(scope='module')
def loaded():
    """All configs read in one process that imports only mmengine."""
    done = subprocess.run(
        [sys.executable, '-c', LOAD_ALL, *CONFIGS], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def algorithm(config):
    return Path(config).name.split('_')[0]


def variant_of(name):
    """The variant that a config names, after the head or, in a pyramid, after `fpn-`; None for a baseline."""

    def short(text):
        return text.lower().replace('-', '').replace('+', 'plus')

    name = short(name.replace('fpn-stride64-', 'fpn-'))
    variants = (*VARIANTS, *ROWS)
    named = [variant for variant in variants if f'_{short(variant)}_' in name or f'fpn{short(variant)}_' in name]
    assert len(named) <= 1, name
    return named[0] if named else None


def is_variant(upsampler, variant):
    options = dict(VARIANTS[variant])
    kind = options.pop('type')
    return kind == f'sapa_mm.{type(upsampler).__name__}' and all(
        getattr(upsampler, name) == value for name, value in options.items()
    )


def test_there_are_configs():
    """The models of the published tables and the two small data sets, each with its baseline."""
    names = [Path(config).name for config in CONFIGS]
    ours = {'SAPA-I', 'SAPA-B', 'SAPA-G'}
    others = {'CARAFE', 'IndexNet', 'A2U'}
    of_sapa_d = {'Deconv', 'PixelShuffle', 'FADE', 'SAPA-D'}
    plus = {'DySample', 'DySample+'}
    in_table = {'SAPA-B', 'Deconv', 'PixelShuffle', 'FADE'} | others | plus
    for model, baseline, variants in (
        (
            'segformer_mit-b1',
            'ade20k-512x512',
            ours | others | of_sapa_d | plus | {'FADE-Lite', 'Nearest'} | set(ROWS) - {'CARAFE-neck'},
        ),
        ('mask2former_swin-b', 'ade20k-640x640', ours),
        ('maskformer_swin-b', 'ade20k-640x640', ours | others | {'DySample'}),
        ('upernet_r50', 'ade20k-512x512', {'SAPA-I', 'SAPA-B'} | others | of_sapa_d),
        ('upernet_r101', 'ade20k-512x512', {'SAPA-D'}),
        ('faster-rcnn_r50_fpn', '1x_coco', ours | others | of_sapa_d | plus),
        ('faster-rcnn_r101_fpn-stride64', '1x_coco', {'SAPA-D', 'DySample+'}),
        ('faster-rcnn_r50_fpn-stride64', '1x_coco', ours | others | of_sapa_d | plus),
        ('mask-rcnn_r50_fpn-stride64', '1x_coco', in_table | {'CARAFE-neck'}),
        ('mask-rcnn_r101_fpn-stride64', '1x_coco', {'DySample+'}),
        ('panoptic-fpn_r50_fpn', '1x_coco', in_table),
        ('panoptic-fpn_r101_fpn', '1x_coco', {'DySample+'}),
        ('segnet_vgg16-bn', 'sunrgbd', ours | others),
        ('segnet_vgg16-bn-w16', 'camvid', {'SAPA-G'}),
        ('segformer_mit-b0', 'camvid', {'SAPA-G'}),
        ('faster-rcnn_r18', 'bccd', {'SAPA-G'}),
        ('segformer_mit-b0', 'demo', {'SAPA-G'}),
        ('mask-rcnn_r18', 'demo', {'SAPA-G'}),
        ('panoptic-fpn_r18', 'demo', {'SAPA-G'}),
    ):
        family = [variant_of(name) for name in names if name.startswith(model) and baseline in name]
        assert {None, *variants} <= set(family), (model, baseline)
    matting = [variant_of(name) for name in names if name.startswith('matting_r34') and 'composition1k' in name]
    assert ours | others | {'Nearest', 'Bilinear', 'FADE', 'FADE-Lite'} == set(matting)


@pytest.fixture
def build_with_options(monkeypatch):
    """Reads a config with `--cfg-options`, as the tools do, and builds the upsamplers of its head or neck."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet.models')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from _common import make_parser, read_config, register_toolbox
    from mmengine import DefaultScope
    from mmengine.registry import MODELS

    def build(*arguments):
        args = make_parser('').parse_args(arguments)
        cfg = read_config(str(ROOT / args.config), args.cfg_options)
        register_toolbox(cfg)
        part = cfg.model.get('neck') or cfg.model.decode_head
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return [module for module in MODELS.build(part).modules() if isinstance(module, BaseUpsampler)]

    return build


@pytest.mark.parametrize('folder', ['demo', 'segformer', 'faster_rcnn'])
def test_options_of_the_readmes(folder, build_with_options):
    """The command that takes the place of a config per upsampler, as the folder's README shows it."""
    readme = (ROOT / 'configs' / folder / 'README.md').read_text()
    blocks = re.findall(r'^```bash title="Read by the tests"\n(.*?)```', readme, re.M | re.S)
    (command,) = (block for block in blocks if '--cfg-options' in block)
    python, tool, *arguments = shlex.split(command.replace('\\\n', ' '))
    assert (python, tool) == ('python', 'tools/train.py')
    upsamplers = build_with_options(*arguments)
    named = dict(x.split('.upsample_cfg.')[1].split('=') for x in arguments if '.upsample_cfg.' in x)
    assert upsamplers and {f'sapa_mm.{type(u).__name__}' for u in upsamplers} == {named.pop('type')}
    assert all(getattr(u, name) == value for u in upsamplers for name, value in named.items())


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_by_options(variant, build_with_options):
    given = [f'model.decode_head.upsample_cfg.{name}={value}' for name, value in VARIANTS[variant].items()]
    upsamplers = build_with_options('configs/demo/segformer_mit-b0_demo.py', '--cfg-options', *given)
    assert len(upsamplers) == STEPS['segformer'] and all(is_variant(u, variant) for u in upsamplers)


def test_options_of_another_type_are_refused(build_with_options):
    """mmengine merges: what the config's own upsampler had is left, until `_delete_` takes it away."""
    config, key = 'configs/demo/segformer_mit-b0_sapa-g_demo.py', 'model.decode_head.upsample_cfg'
    with pytest.raises(TypeError, match="FADE has no option 'similarity'"):
        build_with_options(config, '--cfg-options', f'{key}.type=sapa_mm.FADE')
    upsamplers = build_with_options(config, '--cfg-options', f'{key}._delete_=True', f'{key}.type=sapa_mm.FADE')
    assert {type(u).__name__ for u in upsamplers} == {'FADE'}


@pytest.mark.parametrize('config', CONFIGS)
def test_loads_before_anything_is_imported(config, loaded):
    if algorithm(config) in DETECTORS:
        pytest.importorskip('mmdet')  # its distribution holds the bases
    assert loaded['read'] == len(CONFIGS)
    assert config not in loaded['errors'], loaded['errors'][config]
    assert loaded['imported'] == []


def shrink(cfg):
    model = cfg.model
    model.backbone.init_cfg = None
    if model.type == 'sapa_mm.Mattor':
        return
    if model.type in ('FasterRCNN', 'MaskRCNN', 'PanopticFPN'):
        model.backbone.depth = 18
        model.neck.in_channels = [64, 128, 256, 512]
        model.roi_head.bbox_head.fc_out_channels = 32
        model.data_preprocessor.pad_size_divisor = 32 if model.type == 'PanopticFPN' else 1
        return
    model.data_preprocessor.size = (HEIGHT, WIDTH)
    if model.type == 'DepthEstimator':
        model.backbone.update(depth=18)
        stages = [model.backbone.get('base_channels', 64) * 2**i for i in range(4)]
        model.decode_head.update(in_channels=[stages[0], *stages], channels=128)
        return
    if model.backbone.type in ('MixVisionTransformer', 'sapa_mm.MixVisionTransformer'):
        model.backbone.num_layers = [1, 1, 1, 1]
        return
    if model.backbone.type == 'sapa_mm.SegNetEncoder':
        model.backbone.update(depth=11, base_channels=32)
        model.decode_head.update(in_channels=[32, 64, 128, 256, 256, 256], channels=32)
        return
    if model.backbone.type == 'ResNetV1c':
        model.backbone.update(depth=18, norm_cfg=dict(type='BN'))
        model.decode_head.update(in_channels=[64, 128, 256, 512], channels=64, norm_cfg=dict(type='BN'))
        model.auxiliary_head.update(in_channels=256, channels=32, norm_cfg=dict(type='BN'))
        return
    assert model.backbone.type == 'SwinTransformer'
    model.backbone.update(embed_dims=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
    model.data_preprocessor.test_cfg = None
    head = model.decode_head
    head.in_channels = [32, 64, 128, 256]
    head.num_queries = 5
    head.transformer_decoder.num_layers = 3
    if head.type == 'Mask2FormerHead':
        head.pixel_decoder.encoder.num_layers = 1
        head.train_cfg.num_points = 64


def images(batch):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8) for _ in range(batch)]


META = dict(
    img_shape=(HEIGHT, WIDTH),
    ori_shape=(HEIGHT, WIDTH),
    pad_shape=(HEIGHT, WIDTH),
    batch_input_shape=(HEIGHT, WIDTH),
    scale_factor=(1.0, 1.0),
    img_path='none.png',
)


def segmentation_batch(batch, num_classes, ignored=0.1):
    """Blocks of 8x8 of one class, a part of them ignored."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for seed in range(batch):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, num_classes, (1, 9, 13), generator=generator)
        labels[torch.rand(1, 9, 13, generator=generator) < ignored] = 255
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :HEIGHT, :WIDTH]
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=META))
    return dict(inputs=images(batch), data_samples=samples)


def depth_batch(batch):
    """Depths of up to 12 m, a tenth of them unknown."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for seed in range(batch):
        generator = torch.Generator().manual_seed(seed)
        depth = 12 * torch.rand(1, HEIGHT, WIDTH, generator=generator)
        depth[torch.rand(1, HEIGHT, WIDTH, generator=generator) < 0.1] = 0
        samples.append(SegDataSample(gt_depth_map=PixelData(data=depth), metainfo=META))
    return dict(inputs=images(batch), data_samples=samples)


def matting_batch(batch):
    """Noise whose matte is a ramp, unknown between 0 and 1."""
    from sapa_mm.matting import MattingSample

    samples = []
    for seed, image in enumerate(images(batch)):
        generator = torch.Generator().manual_seed(seed)
        alpha = torch.linspace(-100, 355, WIDTH).clamp(0, 255).byte().expand(HEIGHT, WIDTH)
        trimap = torch.where((alpha == 0) | (alpha == 255), alpha, 128).byte()
        colours = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
        samples.append(
            MattingSample(alpha=alpha, trimap=trimap, foreground=colours[0], background=colours[1], image=image)
        )
    return dict(inputs=images(batch), data_samples=samples)


def detection_batch(batch, num_classes):
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes = torch.tensor([[3.0, 5.0, 40.0, 44.0], [50.0, 8.0, 90.0, 60.0], [20.0, 30.0, 36.0, 47.0]])
    samples = []
    for seed in range(batch):
        labels = torch.randint(0, num_classes, (3,), generator=torch.Generator().manual_seed(seed))
        masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
        semantic = torch.full((1, HEIGHT, WIDTH), num_classes)  # the first class of the background
        for mask, label, (left, top, right, bottom) in zip(masks, labels, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
            semantic[:, top:bottom, left:right] = label
        gt = InstanceData(bboxes=boxes.clone(), labels=labels, masks=BitmapMasks(masks, HEIGHT, WIDTH))
        samples.append(DetDataSample(gt_instances=gt, gt_sem_seg=PixelData(sem_seg=semantic), metainfo=META))
    return dict(inputs=images(batch), data_samples=samples)


@pytest.fixture(scope='module', params=CONFIGS)
def built(request):
    """A config, shrunk, and its model, inside its default scope, as the runner sets it."""
    config = request.param
    if algorithm(config) not in (*DETECTORS, 'matting'):
        pytest.importorskip('mmseg')
    if algorithm(config) in (*DETECTORS, 'maskformer', 'mask2former'):
        pytest.importorskip('mmdet.models')
    from mmengine import Config, DefaultScope
    from mmengine.registry import MODELS

    cfg = Config.fromfile(ROOT / config)
    shrink(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        yield cfg, model


def batch_of(cfg, size):
    if cfg.default_scope == 'mmengine':
        return matting_batch(size)
    if cfg.default_scope == 'mmdet':
        return detection_batch(size, cfg.model.roi_head.bbox_head.num_classes)
    if cfg.model.type == 'DepthEstimator':
        return depth_batch(size)
    import mmseg
    from mmengine.utils import digit_version

    head = cfg.model.decode_head
    # With class weights, mmseg 1.2 looks up the weight of the ignored label 255 too: an IndexError. The one config that
    # has them is the demo's, whose data ignore nothing.
    fails = 'class_weight' in head.get('loss_decode', {}) and digit_version(mmseg.__version__) < digit_version('1.3')
    return segmentation_batch(size, head.num_classes, ignored=0 if fails else 0.1)


def build_optimizer(model, cfg):
    from mmengine.optim import build_optim_wrapper

    settings = cfg.optim_wrapper
    if settings.type == 'AmpOptimWrapper':  # mmengine's refuses to work on a CPU; the stand-in of tools/train.py
        assert settings.pop('dtype') == 'bfloat16'
        settings.type = 'sapa_mm.CPUAmpOptimWrapper'
    return build_optim_wrapper(model, settings)


def test_upsamplers(built):
    """They are those that the name of the config says, and initialising the whole model leaves them as published."""
    cfg, model = built
    upsamplers = [module for module in model.modules() if isinstance(module, BaseUpsampler)]
    path = Path(cfg.filename)
    in_mask_head = 'upsample_cfg' in cfg.model.get('roi_head', {}).get('mask_head', {})
    steps = STEPS[algorithm(path)] + ('stride64' in path.name) + in_mask_head
    variant = variant_of(path.name)
    assert len(upsamplers) == (steps if variant else 0)
    for upsampler in upsamplers:
        assert is_variant(upsampler, ROWS.get(variant, variant))
        if 'FADE' in variant:  # with the gate where the published table has it
            gated = variant == 'FADE-Lite' or (variant == 'FADE' and algorithm(path) in ('segformer', 'matting'))
            assert hasattr(upsampler, 'gate_generator') == gated
        if type(upsampler) is SAPA:
            assert upsampler.shared_gate == (variant == 'SAPA-G-shared')
            wide = variant == 'SAPA-B-d64' or 'bts_r50' in path.name
            assert not hasattr(upsampler, 'k') or upsampler.k.out_channels == (64 if wide else 32)
        if algorithm(path) == 'matting':  # its rule for them is tested in test_matting
            continue
        fresh = deepcopy(upsampler)
        fresh.reset_parameters()
        for (name, x), y in zip(upsampler.named_parameters(), fresh.parameters()):
            if x.numel() > 500:  # deviations of so many samples agree within a few per cent
                torch.testing.assert_close(x.std(), y.std(), rtol=0.2, atol=0, msg=name)


def test_one_prediction(built):
    cfg, model = built
    model.eval()
    with torch.no_grad():
        result = model.test_step(batch_of(cfg, 1))[0]
    if cfg.default_scope == 'mmengine':
        sample = matting_batch(1)['data_samples'][0]
        assert result.pred_alpha.shape == (HEIGHT, WIDTH) and result.pred_alpha.dtype == torch.uint8
        known = sample.trimap != 128
        assert torch.equal(result.pred_alpha[known], sample.trimap[known])
    elif cfg.model.type == 'PanopticFPN':
        segments = result.pred_panoptic_seg.sem_seg
        assert segments.shape == (1, HEIGHT, WIDTH)
        assert (segments % 1000 <= model.num_classes).all()  # 1000 per instance, void after the last class
    elif cfg.default_scope == 'mmdet':
        boxes = result.pred_instances.bboxes
        assert boxes.shape[1] == 4 and boxes.isfinite().all()
        assert len(result.pred_instances.scores) == len(result.pred_instances.labels) == len(boxes)
        if model.with_mask:
            assert result.pred_instances.masks.shape == (len(boxes), HEIGHT, WIDTH)
    elif cfg.model.type == 'DepthEstimator':
        depth = result.pred_depth_map.data
        assert depth.shape == (1, HEIGHT, WIDTH)
        assert 0 < depth.min() and depth.max() < cfg.model.decode_head.max_depth
    else:
        num_classes = cfg.model.decode_head.num_classes
        assert result.seg_logits.data.shape == (num_classes, HEIGHT, WIDTH)
        assert result.seg_logits.data.isfinite().all()
        assert result.pred_sem_seg.data.shape == (1, HEIGHT, WIDTH)
        assert 0 <= result.pred_sem_seg.data.min() and result.pred_sem_seg.data.max() < num_classes


def test_one_training_step(built):
    cfg, model = built
    model.train()
    optimizer = build_optimizer(model, cfg)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) > 20
    for name, p in trained.items():
        if 'upsamplers' in name and not p.any():  # nothing before a layer of zeros gets a gradient
            torch.nn.init.normal_(p, std=0.01)
    before = {name: p.detach().clone() for name, p in trained.items()}

    with optimizer.optim_context(model):
        data = model.data_preprocessor(batch_of(cfg, 2), True)
        is_matting = cfg.default_scope == 'mmengine'
        divisor = 16 if is_matting else cfg.model.data_preprocessor.get('pad_size_divisor', 1)
        assert data['inputs'].shape == (2, 3 + is_matting, *(-(-side // divisor) * divisor for side in (HEIGHT, WIDTH)))
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite() and loss > 0
    optimizer.backward(loss)
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in trained.values())
    assert all(p.grad.any() for name, p in trained.items() if 'upsamplers' in name or '.up.' in name)
    moving = {name for name, p in trained.items() if p.grad.any()}
    if cfg.optim_wrapper.optimizer.type == 'SGD':  # whose step can be too small to show in float32
        rate = max(optimizer.get_lr()['lr'])
        moving = {name for name in moving if not torch.equal(before[name] - rate * trained[name].grad, before[name])}
    optimizer.step()
    still = {name for name in moving if torch.equal(trained[name], before[name])}
    assert len(moving) > 20 and not still
