# SPDX-License-Identifier: Apache-2.0
"""Compiled and exported with open sizes; ONNX; the page that says so."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sapa_mm.ops.sizes import CAN_KEEP_SIZES_OPEN
from sapa_mm.upsamplers import UPSAMPLERS, VARIANTS

ROOT = Path(__file__).parents[1]
open_sizes = pytest.mark.skipif(
    not CAN_KEEP_SIZES_OPEN, reason=f'sizes stay open from torch 2.8 on, this is {torch.__version__}'
)
# Ratio 2, odd sides, ratio 3.7, equal, guide smaller.
FEW = [((6, 8), (12, 16)), ((5, 3), (9, 5)), ((3, 4), (11, 10)), ((4, 3), (4, 3)), ((7, 5), (4, 3))]
IN_CHANNELS = [4, 6, 8]
# Of the finest of three levels.
SIZES = [(16, 24), (17, 23), (30, 13), (40, 40), (9, 21), (32, 18), (25, 50), (12, 12), (19, 11), (33, 31)]


@pytest.fixture(scope='module')
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
        yield importlib.import_module('deployment_table')


def test_page_is_current_and_complete(table):
    """One row for every published variant, and no cell that failed; what was not run says so."""
    results = json.loads(table.RESULTS.read_text())
    assert set(results['rows']) <= set(VARIANTS)
    assert {cfg['type'].removeprefix('sapa_mm.') for cfg in VARIANTS.values()} == set(UPSAMPLERS)
    for name, row in results['rows'].items():
        assert not any('FAILED' in cell for cell in row['cells'].values()), name
    text = table.PAGE.read_text()
    begin, end = text.index(table.BEGIN), text.index(table.END) + len(table.END)
    assert text[begin:end] == table.render(results), 'run tools/dev/deployment_table.py --render'


@pytest.mark.parametrize('name', VARIANTS)
def test_precision_and_determinism(table, name):
    """The quick cells of the table, where torch has autocast for a CPU."""
    assert table.deterministic(name) == 'equal'
    table.bfloat16(name)
    if hasattr(torch, 'get_autocast_dtype'):
        table.float16(name)


@open_sizes
@pytest.mark.parametrize('name', ['CARAFE', 'FreqFusion', 'IndexNet', 'SAPA-D', 'SAPA-G'])
def test_one_graph_for_all_sizes(table, name):
    """What the table does with inductor, without the minutes of its compiler."""
    layout = 'channels_last' if name.startswith('SAPA') else 'nchw'
    _, graphs, _ = table.compiled(name, True, [(table.train, layout)], 'aot_eager', FEW)
    assert graphs == 1


@open_sizes
@pytest.mark.parametrize(
    'name, dynamic, lacking', [('A2U', True, 'adaptive_avg'), ('FreqFusion', False, 'pad2d'), ('ReSFU', False, 'pad2d')]
)
def test_graphs_hold_what_inductor_has(table, name, dynamic, lacking):
    """It has adaptive pooling for fixed sizes alone, and foretells wrong strides of the backward of a border."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return make_boxed_func(graph)

    runs = [(table.infer if dynamic else table.train, 'channels_last')]
    table.compiled(name, dynamic, runs, aot_autograd(fw_compiler=keep), FEW[:1], torch.float64)
    assert graphs and not any(lacking in graph for graph in graphs)


@open_sizes
@pytest.mark.parametrize('name', ['A2U', 'FADE', 'LDA-AQU', 'ReSFU', 'SAPA-B'])
def test_export_with_open_sizes(table, name):
    table.exported(name, FEW)


def decoders():
    """Necks and heads, ``function(maps)``, and what their parameters are."""
    from sapa_mm.decode_heads import GuidedFPNHead, GuidedSegformerHead, GuidedUPerHead
    from sapa_mm.necks import GuidedFPN

    upsample_cfg = dict(type='sapa_mm.SAPA', embed_dims=4)
    head = dict(
        in_channels=IN_CHANNELS, in_index=[0, 1, 2], channels=8, num_classes=3, norm_cfg=dict(type='BN'),
        align_corners=False, dropout_ratio=0,
    )  # fmt: skip
    return dict(
        GuidedFPN=lambda: GuidedFPN(IN_CHANNELS, 8, 4, upsample_cfg=upsample_cfg),
        GuidedFPNHead=lambda: GuidedFPNHead(feature_strides=[4, 8, 16], upsample_cfg=upsample_cfg, **head),
        GuidedSegformerHead=lambda: GuidedSegformerHead(upsample_cfg, **head),
        GuidedUPerHead=lambda: GuidedUPerHead(upsample_cfg=upsample_cfg, pool_scales=(1, 2), **head),
    )


def pyramid(height, width):
    generator = torch.Generator().manual_seed(0)
    sides = [(-(-height // s), -(-width // s)) for s in (1, 2, 4)]
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(IN_CHANNELS, sides)]


def mark_sides(x):
    """Leave height and width open. ``dynamic=True`` opens channels too, and binds a side to channels of one number."""
    torch._dynamo.mark_dynamic(x, (2, 3))
    return x


class Levels(torch.nn.Module):
    """A neck or head that takes its maps one by one, and gives a tuple."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, *levels):
        out = self.decoder(list(levels))
        return out if isinstance(out, tuple) else (out,)


@open_sizes
@pytest.mark.parametrize('name', ['GuidedFPN', 'GuidedSegformerHead'])
def test_decoders_train_compiled(table, name):
    """Whole, in one graph for ten sizes: odd sides, squares, and sides equal to a number of channels among them."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    module = Levels(decoders()[name]()).train()
    torch._dynamo.reset()
    counter = table.counting('aot_eager')
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for size in SIZES:
        grads = []
        for function in (compiled, module):
            leaves = [mark_sides(x.requires_grad_()) for x in pyramid(*size)]
            outputs = function(*leaves)
            grads.append([*outputs, *torch.autograd.grad(sum(x.square().sum() for x in outputs), leaves)])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert counter.graphs == 1


@open_sizes
@pytest.mark.parametrize('name', ['GuidedFPNHead', 'GuidedUPerHead'])
def test_heads_infer_compiled(table, name):
    """Likewise without gradients."""
    pytest.importorskip('mmseg')
    module = Levels(decoders()[name]()).eval()
    torch._dynamo.reset()
    counter = table.counting('aot_eager')
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            levels = [mark_sides(x) for x in pyramid(*size)]
            torch.testing.assert_close(compiled(*levels), module(*levels), rtol=1e-4, atol=1e-4)
    assert counter.graphs == 1


@open_sizes
@pytest.mark.parametrize('name', ['GuidedFPN', 'GuidedSegformerHead', 'GuidedUPerHead'])
def test_decoders_are_exported_with_open_sizes(name):
    """Every level of any size: no ratio between them is assumed."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    module = Levels(decoders()[name]()).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(module, tuple(pyramid(16, 24)), dynamic_shapes=((sizes,) * 3,), strict=False)
        for levels in (
            pyramid(17, 23),
            [a if i != 1 else b for i, (a, b) in enumerate(zip(pyramid(40, 24), pyramid(30, 35)))],
        ):
            torch.testing.assert_close(program.module()(*levels), module(*levels), rtol=1e-4, atol=1e-4)


def export_onnx(*arguments, status=0):
    done = subprocess.run(
        [sys.executable, 'tools/export_onnx.py', *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout if status == 0 else done.stderr


@pytest.fixture
def needs_onnx():
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)


@open_sizes
def test_onnx_of_an_upsampler(needs_onnx, tmp_path):
    out = tmp_path / 'upsampler.onnx'
    said = export_onnx('--upsampler', 'SAPA-B', '--channels', 8, '--shape', 1, 32, 40, '--out', out)
    assert 'largest difference' in said and out.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ['upsampler.onnx']
    import onnx

    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} <= {'', 'ai.onnx'} | {f.domain for f in model.functions}
    dims = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.input]
    assert all(isinstance(side, str) for shape in dims for side in shape[2:])


@open_sizes
@pytest.mark.parametrize(
    'config, options',
    [
        (
            'configs/upernet/upernet_r50_sapa-b_4xb4-80k_ade20k-512x512.py',
            [
                'model.backbone.depth=18',
                'model.decode_head.in_channels=[64,128,256,512]',
                'model.decode_head.channels=32',
                'model.auxiliary_head=None',
            ],
        ),
        ('configs/faster_rcnn/faster-rcnn_r18_fpn-sapa-g_1xb4-800_bccd-320x240.py', []),
    ],
    ids=['UPerNet', 'Faster R-CNN'],
)
def test_onnx_of_a_checkpoint(needs_onnx, tmp_path, monkeypatch, capsys, config, options):
    """The tool holds three sizes; a fourth one here, against the weights that were stored."""
    pytest.importorskip('mmseg' if 'upernet' in config else 'mmdet')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.chdir(ROOT)
    tool = importlib.import_module('export_onnx')
    out, checkpoint = tmp_path / 'model.onnx', tmp_path / 'model.pth'
    arguments = ['--out', str(out), '--shape', '1', '64', '96', *(['--cfg-options', *options] if options else [])]
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', config, *arguments])
    wrapped, inputs = tool.build(tool.parse_args())
    for parameter in wrapped.model.parameters():  # away from those that the tool begins with
        parameter.data.mul_(1 + 0.1 * torch.rand_like(parameter))
    torch.save(dict(state_dict=wrapped.model.state_dict()), checkpoint)
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', config, str(checkpoint), *arguments])
    tool.main()
    assert 'any height and width' in capsys.readouterr().out
    image = tuple(inputs(75, 51).values())
    assert tool.compare(wrapped, tool.Onnx(out), image, repeats=0)[0] <= 1e-4


SEGFORMER = 'configs/demo/segformer_mit-b0_sapa-g_demo.py'


@open_sizes
@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nothing.py'], 'there is no config file nothing.py'),
        ([SEGFORMER, 'nothing.pth'], 'there is no checkpoint nothing.pth'),
        (['configs/demo/matting_r34_sapa-g_demo.py'], 'models of mmengine cannot be exported'),
    ],
)
def test_bad_input(needs_onnx, tmp_path, arguments, message):
    said = export_onnx(*arguments, '--out', tmp_path / 'out.onnx', status=2)
    assert message in said.splitlines()[-1] and said.splitlines()[-1].startswith('error: ')
    assert not list(tmp_path.iterdir())


@open_sizes
def test_bad_options(needs_onnx, tmp_path):
    said = export_onnx(SEGFORMER, '--out', tmp_path / 'none' / 'out.onnx', status=2)
    assert 'cannot be written' in said.splitlines()[-1]
    out = tmp_path / 'out.onnx'
    for arguments, message in (
        (['--upsampler', 'SAPA'], "there is no upsampler 'SAPA'"),
        ([], 'give either a CONFIG or --upsampler NAME'),
        ([SEGFORMER, '--shape', 1, 8, 8], '--shape needs'),
    ):
        assert message in export_onnx(*arguments, '--out', out, status=2)


@open_sizes
def test_adaptive_pooling_in_plain_products():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        tool = importlib.import_module('export_onnx')
    for size, want in (((7, 5), 6), ((12, 6), (3, 2)), ((4, 9), 1), ((3, 3), (3, 8))):
        pool, x = torch.nn.AdaptiveAvgPool2d(want), torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(tool.AdaptivePool(pool)(x), pool(x))
        model = torch.nn.Sequential(pool, torch.nn.Sequential(pool))
        with tool.exportable(model):
            assert not any(isinstance(module, torch.nn.AdaptiveAvgPool2d) for module in model.modules())
        assert model[0] is pool and model[1][0] is pool
