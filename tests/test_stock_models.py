# SPDX-License-Identifier: Apache-2.0
"""Configs of mmdet and mmseg as they come, with one line: what docs/models.md says of them."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import sapa_mm
from sapa_mm.upsamplers import BaseUpsampler

PAGE = (Path(__file__).parents[1] / 'docs' / 'models.md').read_text()
# Of every row with a config: toolbox, config and the line; a cell of code may have no `|`.
ROWS = re.findall(r'^\|.*\| `(mm\w+)::([\w/-]+\.py)` \| `(.+?)` \|.*$', PAGE, flags=re.MULTILINE)
# Rows whose forward is compared with the parent's where the upsampler is the parent's own interpolation.
# Not those of MaskFormer, whose outputs need a batch, and not SegFormer's head, which takes one step where its guided
# version takes several.
NOT_COMPARED = ('pixel_decoder', 'GuidedSegformerHead')
PARENTS = dict(neck='Nearest', backbone='Bilinear', decode_head='Bilinear')
SIZE = (64, 96)


def read(toolbox, path, line=None):
    """The config's model, smaller: no pretrained weights, BN for SyncBN, and no padding to the size of its crops."""
    from mmengine import Config

    config = Path(import_module(toolbox).__file__).parent / '.mim' / 'configs' / path
    if not config.exists():
        pytest.skip(f'{toolbox} was installed without its configs')
    config = Config.fromfile(config)
    if line:
        config.merge_from_dict(dict(model=eval(f'dict({line})')))
    return shrink(config.model)


def shrink(cfg):
    if isinstance(cfg, dict):
        cfg.pop('pretrained', None)
        cfg.pop('batch_augments', None)
        if cfg.get('init_cfg') and cfg.init_cfg.get('type') == 'Pretrained':
            cfg.init_cfg = None
        if cfg.get('type') == 'SegDataPreProcessor':
            cfg.size = SIZE
        if cfg.get('type') == 'SyncBN':
            cfg.type = 'BN'
        if cfg.get('type') in ('ResNet', 'ResNetV1c') and cfg.depth > 50:
            cfg.depth = 50
    for value in cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ():
        shrink(value)
    return cfg


def build(cfg):
    from mmengine.registry import MODELS

    torch.manual_seed(0)
    return MODELS.build(cfg)


def batch(toolbox, masks):
    """Two pictures with their labels, as the toolbox's loader gives them."""
    if toolbox == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [(3, *SIZE)] * 2, num_items=[3, 3], with_mask=masks, with_semantic=masks)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    meta = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 2, (1, *SIZE))), metainfo=meta) for _ in '12']
    return dict(inputs=[torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in '12'], data_samples=samples)


def outputs(model, image):
    """Of neck or decode head."""
    features = model.extract_feat(image)
    if hasattr(model, 'decode_head'):
        features = model.decode_head(features)
    return [features] if torch.is_tensor(features) else list(features)


def test_the_page_names_configs():
    assert len(ROWS) >= 10 and {toolbox for toolbox, _, _ in ROWS} == {'mmdet', 'mmseg'}
    for name in dir(sapa_mm):
        if name.startswith('Guided'):
            assert f'sapa_mm.{name}' in PAGE, name


@pytest.mark.parametrize('toolbox, path, line', ROWS, ids=[path for _, path, _ in ROWS])
def test_one_line(toolbox, path, line):
    """Built, parent's weights loaded, equal to the parent with its interpolation, and one training step with SAPA."""
    pytest.importorskip(f'{toolbox}.models')
    from mmengine.registry import DefaultScope

    place = line.partition('=')[0]
    with DefaultScope.overwrite_default_scope(toolbox):
        parent = build(read(toolbox, path))
        if place in PARENTS and not any(name in line for name in NOT_COMPARED):
            twin = build(read(toolbox, path, line.replace("'SAPA'", repr(PARENTS[place]))))
            assert not twin.load_state_dict(parent.state_dict(), strict=True).unexpected_keys
            image = torch.randn(1, 3, *SIZE)
            for model in (parent, twin):
                model.train(False)
            with torch.no_grad():
                for ours, theirs in zip(outputs(twin, image), outputs(parent, image), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        model = build(read(toolbox, path, line))
        upsamplers = [name for name, module in model.named_modules() if isinstance(module, BaseUpsampler)]
        missing, unexpected = model.load_state_dict(parent.state_dict(), strict=False)
        # what a mask head replaces is a deconvolution with weights
        assert all(key.startswith(tuple(upsamplers)) for key in missing + unexpected) and upsamplers
        model.train()
        data = model.data_preprocessor(batch(toolbox, 'mask' in path), True)
        losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.step()
    for name in upsamplers:
        for key, parameter in model.get_submodule(name).named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f'{name}.{key}'
