# SPDX-License-Identifier: Apache-2.0
"""tools/get_flops.py: what it counts, for models of every family, and what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmseg')
pytest.importorskip('mmdet.models')

ROOT = Path(__file__).parents[1]
SEGFORMER = 'configs/segformer/segformer_mit-b0_sapa-g_1xb8-2400_camvid-192x256.py'


@pytest.fixture(scope='module')
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        import get_flops
    return get_flops


def run(*args, status=0):
    done = subprocess.run(
        [sys.executable, 'tools/get_flops.py', *args], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done


class Layers(nn.Module):
    """One of each kind of layer that a formula knows; not all of them are called through the module."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 4, 2, stride=2)])
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.convs[0](x).relu()
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        self.head.forward(tokens)
        F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])
        torch.einsum('nlc,nmc->nlm', tokens, tokens)
        F.grid_sample(x, x.new_zeros(1, 3, 2, 2), align_corners=False)
        return self.convs[1](x)


def test_count(tool):
    model = Layers().eval()
    height, width = 4, 5
    x = torch.rand(1, 4, height, width)
    cost = tool.count(model, lambda: model(x))
    tokens = height * width
    attention = 4 * tokens * 8 * 8 + 2 * tokens * tokens * 8
    parts = dict(
        convs=tokens * (8 * 2 * 9 + 8 * 4 * 4),
        attention=attention,
        head=tokens * 8 * 3,
    )
    assert {name: cost.modules[name] for name in parts} == parts
    rest = 2 * tokens * tokens * 8 + tokens * tokens * 8 + 4 * 8 * 3 * 2
    assert cost.macs == cost.modules[''] == sum(parts.values()) + rest
    assert cost.not_counted['aten::relu'] == 1
    assert not {'aten::convolution', 'aten::view', 'aten::transpose'} & cost.not_counted.keys()


def test_count_is_the_same_on_meta(tool):
    expected = tool.count(model := Layers().eval(), lambda: model(torch.rand(1, 4, 4, 5))).macs
    with torch.device('meta'):
        model = Layers().eval()
        assert tool.count(model, lambda: model(torch.empty(1, 4, 4, 5))).macs == expected


def test_json(tool):
    done = run(SEGFORMER, '--shape', '96', '64', '--json')
    report = json.loads(done.stdout)
    assert report['shape'] == [96, 64]
    model = tool.build_model(tool.read_config(str(ROOT / SEGFORMER)))
    assert report['params'] == sum(p.numel() for p in model.parameters())
    modules = report['modules']
    assert modules['backbone']['macs'] + modules['decode_head']['macs'] == report['macs']
    assert modules['backbone']['params'] + modules['decode_head']['params'] == report['params']
    # gated SAPA of 128 channels: projections of guide and feature, then scores and assembly
    cells = (3 * 2 + 6 * 4 + 12 * 8) + (6 * 4 + 12 * 8) + 12 * 8
    per_cell = 4 * 128 * 32 + 2 * 128 * 32 + 128 + 4 * 25 * (32 + 128)
    assert modules['decode_head.upsamplers']['macs'] == cells * per_cell
    assert report['not_counted']['aten::native_layer_norm'] > 12
    assert not any('sapa_mm' in name or 'convolution' in name for name in report['not_counted'])


def test_table():
    out = run(SEGFORMER, '--depth', '1').stdout
    assert 'image of 192x256' in out
    assert 'backbone' in out and 'upsamplers' not in out
    assert 'GMAC' in out and 'FLOPs = 2 x MACs' in out and 'not counted: aten::' in out


def test_refuses():
    assert 'there is no config file' in run('nothing.py', status=2).stderr
    assert '--shape must be positive' in run(SEGFORMER, '--shape', '0', '64', status=2).stderr


TINY = {
    'maskformer/maskformer_swin-b-in22k-384x384-pre_sapa-b_8xb2-160k_ade20k-640x640.py': 'decode_head.pixel_decoder',
    'mask2former/mask2former_swin-b-in22k-384x384-pre_sapa-b_8xb2-160k_ade20k-640x640.py': 'decode_head.pixel_decoder',
    'upernet/upernet_r50_sapa-b_4xb4-80k_ade20k-512x512.py': 'decode_head',
    'segnet/segnet_vgg16-bn_sapa-b_1xb8-200e_sunrgbd-480x480.py': 'decode_head',
    'faster_rcnn/faster-rcnn_r50_fpn-sapa-b_1x_coco.py': 'neck',
    'panoptic_fpn/panoptic-fpn_r50_fpn-dysample_1x_coco.py': 'neck',
    'mask_rcnn/mask-rcnn_r50_fpn-stride64-dysample_1x_coco.py': 'neck',
}


@pytest.mark.parametrize('config', TINY)
def test_every_family(tool, config):
    """At a small size: every part runs and is counted, heads and upsamplers among them."""
    cfg = tool.read_config(str(ROOT / 'configs' / config))
    if cfg.model.backbone.type == 'SwinTransformer':
        cfg.model.backbone.update(embed_dims=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
        cfg.model.decode_head.in_channels = [32, 64, 128, 256]
    tool.register_toolbox(cfg)
    model = tool.build_model(cfg)
    cost, (height, width) = tool.count_config(cfg, model, (64, 96))
    assert height >= 64 and width >= 96
    parts = [name for name, part in model.named_children() if tool.parameters(part) and name != 'auxiliary_head']
    assert len(parts) >= 2 and all(cost.modules[name] for name in parts), cost.modules
    assert sum(cost.modules[name] for name in parts) <= cost.macs
    assert cost.modules[f'{TINY[config]}.upsamplers'] > 0
    if cfg.default_scope == 'mmdet':
        assert cost.not_counted['mmcv::RoIAlign'] > 0
        # as many proposals as the config allows, each through the two shared layers of the box head
        assert cost.modules['roi_head.bbox_head.shared_fcs'] == 1000 * (256 * 7 * 7 * 1024 + 1024 * 1024)
