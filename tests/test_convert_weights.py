# SPDX-License-Identifier: Apache-2.0
"""tools/convert_weights.py on state dicts with the names and shapes of the published implementations."""

import importlib
import pickle
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')
from mmengine import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[1]

SEGFORMER = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='MixVisionTransformer', embed_dims=8, num_stages=4, num_layers=[1, 2, 1, 1], num_heads=[1, 1, 1, 1],
        sr_ratios=[2, 2, 1, 1], init_cfg=dict(type='Pretrained', checkpoint='is/not/there.pth')),
    decode_head=dict(
        type='sapa_mm.GuidedSegformerHead', in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3], channels=32,
        num_classes=3, norm_cfg=dict(type='BN'), align_corners=False, published_form=True, upsample_cfg=UPSAMPLER),
    test_cfg=dict(mode='whole'))
"""
FASTER_RCNN = """
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'
default_scope = 'mmdet'
model = dict(
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(type='sapa_mm.GuidedFPN', in_channels=[64, 128, 256, 512], out_channels=32, upsample_cfg=UPSAMPLER),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=16, num_classes=3)))
"""


@pytest.fixture(scope='module')
def tool():
    sys.path.insert(0, str(ROOT / 'tools'))
    yield importlib.import_module('convert_weights')
    sys.path.remove(str(ROOT / 'tools'))


def build(path, seed=0):
    """The model of a config, every value its own."""
    cfg = Config.fromfile(path)
    if cfg.default_scope == 'mmdet':
        pytest.importorskip('mmdet.models')
    importlib.import_module(f'{cfg.default_scope}.models')
    cfg.model.backbone.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(seed)
    for x in model.state_dict().values():
        x.copy_(torch.rand(x.shape, generator=generator) if x.is_floating_point() else torch.tensor(7))
    return model


def linear(name, x):
    """1x1 convolutions of the published modules that are linear layers."""
    return x.flatten(1) if x.dim() == 4 else x


def sapa_of_the_log(name, x):
    moved = {'qy': 'q.proj_y', 'qx': 'q.proj_x', 'gate': 'q.gate', 'k': 'k.proj'}
    layer, kind = name.split('.')
    return {f'{moved.get(layer, layer)}.{kind}': linear(name, x)}


# upsample_cfg, and one weight of ours as the published module has it
UPSAMPLERS = {
    'sapa-b': (
        "dict(type='sapa_mm.SAPA', similarity='bilinear', embed_dims=4)",
        lambda name, x: {name: linear(name, x)},
    ),
    'sapa-g': ("dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=4)", sapa_of_the_log),
    'sapa-group': (
        "dict(type='sapa_mm.SAPA', similarity='bilinear', embed_dims=4, norm='group')",
        lambda name, x: {name: x},
    ),
    'carafe': ("dict(type='sapa_mm.CARAFE', compressed_channels=4, kernel_size=3)", lambda name, x: {name: x}),
    'deconv': ("dict(type='sapa_mm.Deconv')", lambda name, x: {name.removeprefix('conv.'): x}),
    'pixel-shuffle': ("dict(type='sapa_mm.PixelShuffle')", lambda name, x: {name.replace('conv.', '0.'): x}),
    'dysample': (
        "dict(type='sapa_mm.DySample', dyscope=True)",
        lambda name, x: {name: x, 'init_pos': torch.zeros(1, 32, 1, 1)},
    ),
    'indexnet': ("dict(type='sapa_mm.IndexNet')", lambda name, x: {f'index_net.{name}': x}),
    'a2u': (
        "dict(type='sapa_mm.A2U')",
        lambda name, x: {
            f'kernel_gen.{name}': x,
            'kernel_gen.bconv_DP.1.weight': torch.zeros(36, 32, 1, 1),
            'kernel_gen.bconv_DP.1.bias': torch.zeros(36),
        },
    ),
    'fade': ("dict(type='sapa_mm.FADE')", lambda name, x: {name: x}),
    'sapa-d': ("dict(type='sapa_mm.SAPADeform', embed_dims=4)", lambda name, x: {name: x}),
}


def mit(name, x):
    """mmseg's Mix Transformer -> its authors'."""
    _, stage, part, *rest = name.split('.')
    stage = int(stage) + 1
    if part == '0':
        return {f'patch_embed{stage}.{".".join(rest).replace("projection", "proj")}': x}
    if part == '2':
        return {f'norm{stage}.{".".join(rest)}': x}
    block, layer = f'block{stage}.{rest[0]}.', '.'.join(rest[1:])
    if '.in_proj_' in layer:
        kind = layer.partition('in_proj_')[2]
        width = len(x) // 3
        return {f'{block}attn.q.{kind}': x[:width], f'{block}attn.kv.{kind}': x[width:]}
    for ours, theirs in (
        ('attn.attn.out_proj.', 'attn.proj.'),
        ('ffn.layers.0.', 'mlp.fc1.'),
        ('ffn.layers.1.', 'mlp.dwconv.dwconv.'),
        ('ffn.layers.4.', 'mlp.fc2.'),
    ):
        layer = layer.replace(ours, theirs)
    return {block + layer: linear(name, x) if '.fc' in layer else x}


def segformer(state, upsampler):
    """The SegFormer authors' names, with the published upsamplers inside."""
    out = {}
    for name, x in state.items():
        part, _, rest = name.partition('.')
        if part == 'backbone':
            out.update({f'backbone.{key}': value for key, value in mit(rest, x).items()})
        elif rest.startswith('upsamplers.'):
            prefix, layer = rest.split('.', 2)[:2], rest.split('.', 2)[2]
            out.update({'.'.join(['decode_head', *prefix, key]): value for key, value in upsampler(layer, x).items()})
        elif rest.startswith('convs.'):
            _, level, _, kind = rest.split('.')
            out[f'decode_head.linear_c{int(level) + 1}.proj.{kind}'] = linear(rest, x)
        else:
            rest = rest.replace('conv_seg.', 'linear_pred.').replace('fusion_conv.', 'linear_fuse.')
            out[f'decode_head.{rest}'] = x
    out['decode_head.conv_seg.weight'] = torch.zeros(3, 128, 1, 1)  # never used there
    out['decode_head.conv_seg.bias'] = torch.zeros(3)
    return out


def detector(state, upsampler):
    """The authors' version of mmdet: all names are mmdet's, but for the upsamplers."""
    out = {}
    for name, x in state.items():
        if name.startswith('neck.upsamplers.'):
            _, _, i, layer = name.split('.', 3)
            out.update({f'neck.upsample_modules.{i}.{key}': value for key, value in upsampler(layer, x).items()})
        else:
            out[name] = x
    return out


def run(tool, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['convert_weights.py', *map(str, args)])
    tool.main()


def write_config(folder, text, upsampler):
    path = folder / 'config.py'
    path.write_text(text.replace('UPSAMPLER', upsampler))
    return path


@pytest.mark.parametrize(
    'model, kind',
    [*(('segformer', kind) for kind in UPSAMPLERS), *(('detector', kind) for kind in ('sapa-group', 'dysample'))],
)
def test_converts(tool, monkeypatch, tmp_path, capsys, model, kind):
    """Published names, moved there by this test's own map, come back as the values that they were."""
    cfg, upsampler = UPSAMPLERS[kind]
    text, publish = (SEGFORMER, segformer) if model == 'segformer' else (FASTER_RCNN, detector)
    config = write_config(tmp_path, text, cfg)
    expected = build(config).state_dict()
    published = publish(expected, upsampler)
    torch.save(dict(meta=dict(CLASSES=('a', 'b', 'c'), epoch=3), state_dict=published), tmp_path / 'in.pth')

    run(tool, monkeypatch, config, tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert 'have a source' in capsys.readouterr().out
    converted = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert converted['meta'] == dict(converted_from='in.pth', CLASSES=('a', 'b', 'c'))
    assert converted['state_dict'].keys() == expected.keys()
    assert all(torch.equal(x, expected[key]) for key, x in converted['state_dict'].items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ['config.py', 'in.pth', 'out.pth']


@pytest.mark.parametrize('model', ['faster-rcnn', 'mask-rcnn'])
def test_converts_the_carafe_models_of_mmdet(tool, monkeypatch, tmp_path, capsys, model):
    """From the state dict of mmdet's own classes, small: FPN_CARAFE and, of Mask R-CNN, the mask head."""
    pytest.importorskip('mmdet.models')
    config = ROOT / 'configs' / model.replace('-', '_') / f'{model}_r50_fpn-stride64-carafe_1x_coco.py'
    ours = Config.fromfile(config)
    theirs = Config.fromfile(mmdet_configs() / f'carafe/{model}_r50_fpn-carafe_1x_coco.py')
    for cfg in (ours, theirs):
        cfg.model.backbone.update(depth=18, init_cfg=None)
        cfg.model.neck.in_channels = [64, 128, 256, 512]
    ours.dump(tmp_path / 'ours.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        published = MODELS.build(theirs.model)
    assert type(published.neck).__name__ == 'FPN_CARAFE'
    torch.save(dict(state_dict=published.state_dict()), tmp_path / 'in.pth')

    run(tool, monkeypatch, tmp_path / 'ours.py', tmp_path / 'in.pth', tmp_path / 'out.pth')
    converted = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    built = build(tmp_path / 'ours.py')
    built.load_state_dict(converted)
    for name, x in published.state_dict().items():
        assert torch.equal(built.state_dict()[name.replace('upsample_modules', 'upsamplers')], x), name
    assert len(converted) == len(published.state_dict())


def mmdet_configs():
    import mmdet

    return Path(mmdet.__file__).parent / '.mim' / 'configs'


@pytest.fixture
def segformer_files(tmp_path):
    config = write_config(tmp_path, SEGFORMER, UPSAMPLERS['sapa-g'][0])
    return config, segformer(build(config).state_dict(), sapa_of_the_log), tmp_path / 'in.pth', tmp_path / 'out.pth'


def test_dry_run_lists_every_weight(tool, monkeypatch, segformer_files, capsys):
    config, published, checkpoint, out = segformer_files
    # a bare state dict, from a parallel wrapper
    torch.save({f'module.{key}': x for key, x in published.items()}, checkpoint)
    run(tool, monkeypatch, config, checkpoint, '--dry-run')
    lines = capsys.readouterr().out.splitlines()
    for line in (
        'backbone.patch_embed1.proj.weight -> backbone.layers.0.0.projection.weight',
        'backbone.block2.1.attn.q.weight + backbone.block2.1.attn.kv.weight -> '
        'backbone.layers.1.1.1.attn.attn.in_proj_weight',
        'backbone.block1.0.mlp.dwconv.dwconv.bias -> backbone.layers.0.1.0.ffn.layers.1.bias',
        'decode_head.linear_c4.proj.weight -> decode_head.convs.3.conv.weight',
        'decode_head.linear_pred.bias -> decode_head.conv_seg.bias',
        'decode_head.upsamplers.5.q.proj_y.weight -> decode_head.upsamplers.5.qy.weight',
        'decode_head.upsamplers.0.norm_x.bias (same name)',
        'not needed (2):',
        '  decode_head.conv_seg.weight',
    ):
        assert lines.count(line) == 1, line
    listed = {key for line in lines if ' -> ' in line for key in line.partition(' -> ')[0].split(' + ')}
    listed |= {line.removesuffix(' (same name)') for line in lines if line.endswith('(same name)')}
    assert listed | {'decode_head.conv_seg.weight', 'decode_head.conv_seg.bias'} == set(published)
    assert not out.exists()


def refuse(tool, monkeypatch, capsys, config, checkpoint, out):
    with pytest.raises(SystemExit) as error:
        run(tool, monkeypatch, config, checkpoint, out)
    assert error.value.code == 2
    assert not out.exists()
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_refuses_with_lists(tool, monkeypatch, segformer_files, capsys):
    config, published, checkpoint, out = segformer_files
    del published['decode_head.upsamplers.3.k.proj.weight']
    del published['backbone.block1.0.attn.kv.bias']
    published['decode_head.upsamplers.6.k.proj.bias'] = torch.zeros(4)
    published['auxiliary_head.conv_seg.bias'] = torch.zeros(3)
    published['decode_head.linear_pred.bias'] = torch.zeros(150)
    torch.save(dict(state_dict=published), checkpoint)
    text = refuse(tool, monkeypatch, capsys, config, checkpoint, out)
    for part in (
        'missing: nothing in the checkpoint maps to (1):\n  decode_head.upsamplers.3.k.weight\n',
        'left over: no place in the model (2):\n',
        '\n  decode_head.upsamplers.6.k.proj.bias\n',
        '\n  auxiliary_head.conv_seg.bias\n',
        'does not fit (2):\n',
        '\n  decode_head.conv_seg.bias has the shape (3,), decode_head.linear_pred.bias (150,)',
        'in_proj_bias has the shape (24,), backbone.block1.0.attn.q.bias (8,)',
        'does not fit',
        'nothing written',
    ):
        assert part in text, part


def test_refuses_another_upsampler(tool, monkeypatch, segformer_files, tmp_path, capsys):
    config, published, checkpoint, out = segformer_files
    write_config(tmp_path, SEGFORMER, UPSAMPLERS['carafe'][0])
    torch.save(dict(state_dict=published), checkpoint)
    text = refuse(tool, monkeypatch, capsys, config, checkpoint, out)
    assert 'decode_head.upsamplers.0.channel_compressor.weight' in text
    assert 'decode_head.upsamplers.0.q.proj_y.weight' in text


@pytest.mark.parametrize('trained, built', [('sapa-b', 'sapa-group'), ('sapa-group', 'sapa-b')])
def test_refuses_the_other_norm(tool, monkeypatch, tmp_path, capsys, trained, built):
    """Equal names and shapes, another meaning: the linear layers go with LayerNorm, 1x1 convolutions with GroupNorm."""
    config = write_config(tmp_path, SEGFORMER, UPSAMPLERS[built][0])
    published = segformer(build(config).state_dict(), UPSAMPLERS[trained][1])
    torch.save(dict(state_dict=published), tmp_path / 'in.pth')
    text = refuse(tool, monkeypatch, capsys, config, tmp_path / 'in.pth', tmp_path / 'out.pth')
    names = {'sapa-b': 'layer', 'sapa-group': 'group'}
    line = f"trained with norm='{names[trained]}', the config builds norm='{names[built]}'"
    assert text.count(line) == 6


def test_the_model_stays_as_it_is(tool, segformer_files):
    config, published, *_ = segformer_files
    model = build(config, seed=1)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    names = list(published)
    conversion = tool.convert(model, published)
    assert conversion.fits and list(published) == names
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())


def test_writes_over_nothing(tool, monkeypatch, segformer_files, capsys):
    config, published, checkpoint, out = segformer_files
    torch.save(dict(state_dict=published), checkpoint)
    out.write_text('mine')
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, config, checkpoint, out)
    assert out.read_text() == 'mine' and f'{out} exists' in capsys.readouterr().err


class Evil:
    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_runs_no_code_of_the_file(tool, monkeypatch, segformer_files, tmp_path, capsys):
    config, published, checkpoint, out = segformer_files
    evil = Evil()
    evil.path = str(tmp_path / 'touched')
    torch.save(dict(state_dict=published, optimizer=evil), checkpoint)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)
    text = refuse(tool, monkeypatch, capsys, config, checkpoint, out)
    assert 'cannot be read as weights only' in text
    assert not (tmp_path / 'touched').exists()
    torch.load(checkpoint, weights_only=False)
    assert (tmp_path / 'touched').exists()  # the file would have done it


@pytest.mark.parametrize(
    'content, message',
    [
        ([1, 2], 'holds list instead of a dictionary'),
        (dict(state_dict={}), 'holds dict instead of a dictionary of weights'),
        (dict(state_dict=dict(a=torch.zeros(1), b=3)), 'no tensors under b'),
    ],
    ids=str,
)
def test_bad_checkpoints(tool, monkeypatch, segformer_files, capsys, content, message):
    config, _, checkpoint, out = segformer_files
    torch.save(content, checkpoint)
    assert message in refuse(tool, monkeypatch, capsys, config, checkpoint, out)
    checkpoint.write_bytes(b'not a checkpoint')
    assert 'cannot be read' in refuse(tool, monkeypatch, capsys, config, checkpoint, out)
    checkpoint.unlink()
    assert f'there is no checkpoint {checkpoint}' in refuse(tool, monkeypatch, capsys, config, checkpoint, out)
