# SPDX-License-Identifier: Apache-2.0
"""What importing the package brings along, what it says where something is missing, data sets and the doctor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sapa_mm import ops
from sapa_mm.ops import library

ROOT = Path(__file__).parents[1]

# Hides packages as if they were not installed: `import x` raises ModuleNotFoundError.
BLOCK = 'import sys\nfor name in {names!r}:\n    sys.modules[name] = None\n'
# Hides the compiled operators as if the package had been installed without them.
HIDE_LIBRARY = """
import importlib.util
_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'sapa_mm._C' else _find_spec(name, *args)
"""


def run(code, *args, block=(), status=0):
    """Run Python code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, '-c', BLOCK.format(names=tuple(block)) + code, *map(str, args)],
        capture_output=True, text=True, timeout=300,
        cwd=Path(__file__).parent,  # Python looks here first: not the checkout, beside an installed copy
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def test_import_brings_nothing_heavy():
    """Neither toolbox nor mmcv, installed or not; the package itself not even torch."""
    out = run(
        'import sapa_mm\n'
        'print("torch" in sys.modules, "mmengine" in sys.modules)\n'
        'import sapa_mm.ops\n'
        'print("mmengine" in sys.modules)\n'
        'import sapa_mm.upsamplers\n'
        'print([m for m in sys.modules if m.split(".")[0] in ("mmseg", "mmdet", "mmcv")])\n'
    )
    assert out.split('\n')[:3] == ['False False', 'False', '[]']


def test_operators_need_only_torch():
    out = run(
        'import torch, sapa_mm.ops\n'
        'x = torch.ones(1, 2, 3, 3)\n'
        'print(sapa_mm.ops.point_affiliation(torch.ones(1, 2, 5, 5), x, x).shape[2])\n',
        block=['mmengine', 'mmcv', 'mmseg', 'mmdet'],
    )
    assert out.strip() == '5'


def test_upsamplers_need_only_mmengine():
    out = run(
        'import torch\n'
        'from mmengine.registry import MODELS\n'
        'm = MODELS.build(dict(type="sapa_mm.SAPA", in_channels=4))\n'
        'print(tuple(m(torch.ones(1, 4, 3, 3), torch.ones(1, 4, 7, 5)).shape))\n',
        block=['mmcv', 'mmseg', 'mmdet'],
    )
    assert out.strip() == '(1, 4, 7, 5)'


@pytest.mark.parametrize(
    'registry, type_, block, needs',
    [
        ('MODELS', 'GuidedFPN', ['mmdet', 'mmseg'], 'mmdet or mmseg'),
        ('MODELS', 'GuidedSegformerHead', ['mmseg'], 'mmseg'),
        ('MODELS', 'GuidedMSDeformAttnPixelDecoder', ['mmdet'], 'mmdet'),
        ('MODELS', 'GuidedUPerHead', ['mmseg'], 'mmseg'),
        ('MODELS', 'SegNetHead', ['mmseg'], 'mmseg'),
        ('MODELS', 'SegNetEncoder', ['mmcv'], 'mmcv'),
        ('MODELS', 'GuidedPixelDecoder', ['mmdet'], 'mmdet'),
        ('MODELS', 'GuidedTransformerEncoderPixelDecoder', ['mmdet'], 'mmdet'),
        ('DATASETS', 'CamVidDataset', ['mmseg'], 'mmseg'),
        ('DATASETS', 'SUNRGBDDataset', ['mmseg'], 'mmseg'),
        ('TRANSFORMS', 'LoadPanopticSegments', ['mmdet'], 'mmdet'),
        ('METRICS', 'PanopticQuality', ['mmdet'], 'mmdet'),
    ],
)
def test_types_that_miss_their_toolbox_say_so(registry, type_, block, needs):
    """Not "is not in the registry": the import error, the need and the doctor. The package goes on working."""
    out = run(
        f'from mmengine.registry import {registry}\n'
        'try:\n'
        f'    {registry}.build(dict(type="sapa_mm.{type_}", any_argument=1))\n'
        'except ImportError as error:\n'
        '    print(error)\n'
        'from sapa_mm.upsamplers import SAPA\n'
        'print(SAPA(4).in_channels)\n',
        block=block,
    )
    *_, message, rest = out.strip().split('\n')  # toolboxes print while they are imported
    assert message.startswith(f'{type_} needs {needs}, which cannot be imported (')
    assert block[-1] in message and message.endswith('see `python -m sapa_mm.doctor`')
    assert rest == '4'


def operator_cases():
    """Inputs of both operators: exact, odd and shrinking sizes, maps smaller than the window, every normalisation."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sizes = [((4, 6), (8, 12)), ((5, 3), (9, 8)), ((2, 2), (7, 3)), ((6, 7), (3, 2)), ((1, 1), (4, 4))]
    for (h, w), (height, width) in sizes:
        for kernel_size in (1, 3, 5):
            for normalization in ('softmax', 'relu', 'sigmoid', 'softplus'):
                yield (
                    'point_affiliation',
                    [rand(2, 3, height, width), rand(2, 3, h, w), rand(2, 5, h, w)],
                    [kernel_size, normalization],
                )
            yield 'feature_assembly', [rand(2, 4, h, w), rand(2, 2 * kernel_size**2, height, width)], [kernel_size, 2]


def outputs_and_gradients(cases):
    results = []
    for name, tensors, options in cases:
        tensors = [x.clone().requires_grad_() for x in tensors]
        out = getattr(ops, name)(*tensors, *options)
        weights = torch.arange(out.numel(), dtype=out.dtype).sin().view(out.shape)
        results.append([out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)])
    return results


def test_fallback_is_the_same_function(tmp_path):
    """Without the compiled library the same calls give the same outputs and gradients, at the border too."""
    if ops.backend() != 'native':
        pytest.skip('the compiled operators are not installed: nothing to compare the reference with')
    cases = list(operator_cases())
    torch.save(cases, tmp_path / 'cases.pt')
    out = run(
        HIDE_LIBRARY
        + 'import torch\n'
        + 'from sapa_mm import ops\n'
        + 'from sapa_mm.ops.library import unavailable_reason\n'
        + f'sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
        + 'from test_package import outputs_and_gradients\n'
        + 'torch.save(outputs_and_gradients(torch.load(sys.argv[1])), sys.argv[2])\n'
        + 'print(ops.backend(), "|", hasattr(torch.ops.sapa_mm, "point_affiliation"), "|", unavailable_reason)\n',
        tmp_path / 'cases.pt',
        tmp_path / 'results.pt',
    )
    assert out.strip() == 'reference | False | the package was installed without its compiled operators'
    for case, native, reference in zip(cases, outputs_and_gradients(cases), torch.load(tmp_path / 'results.pt')):
        for ours, theirs in zip(native, reference, strict=True):
            # a weight of relu is divided by a sum that can be as small as EPS
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, case=case: f'{case}: {m}')


def test_a_library_older_than_the_package_is_not_used(monkeypatch):
    if ops.backend() != 'native':
        pytest.skip('the compiled operators are not installed')
    monkeypatch.setattr(library, 'OPERATORS', (*library.OPERATORS, 'of_tomorrow'))
    assert library._load().endswith('is older than this package, it lacks of_tomorrow')


def test_a_library_of_another_torch_is_not_used(monkeypatch):
    """Even where it can be loaded: the next torch may lay out its objects otherwise."""
    if ops.backend() != 'native':
        pytest.skip('the compiled operators are not installed')
    built_for = torch.ops.sapa_mm.built_for()
    assert torch.__version__.startswith(f'{built_for}.')
    assert library._load() is None
    monkeypatch.setattr(torch, '__version__', '2.99.0+cpu')
    assert library._load().endswith(f'was built for torch {built_for}, this is 2.99.0+cpu')


USE_TWICE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import torch
    import sapa_mm.ops.library as library
    from sapa_mm import SAPA, ops
    SAPA(4)
    ops.backend(torch.ones(1, 4, 3, 3))
    messages = [[str(w.message) for w in caught if 'sapa_mm' in str(w.message)]]
    x = torch.ones(1, 4, 3, 3)
    for _ in range(2):
        ops.point_affiliation(x, x, x)
        ops.feature_assembly(x, torch.ones(1, 9, 6, 6), 3)
        messages.append([str(w.message) for w in caught if 'sapa_mm' in str(w.message)])
print(*map(len, messages))
print(*messages[-1])
"""


def test_a_missing_library_is_said_once_when_it_is_missed(monkeypatch):
    """Not when the package is imported, not for a question, not by the second operator."""
    monkeypatch.delenv('SAPA_MM_WITH_OPS', raising=False)  # the suite runs with it, too
    counts, message = run(HIDE_LIBRARY + USE_TWICE).splitlines()
    assert counts == '0 1 1'
    assert 'the package was installed without its compiled operators' in message
    assert '`python -m sapa_mm.doctor`' in message


@pytest.mark.parametrize('how', ['at run time', 'when built', 'for this call', 'compiled'])
def test_what_was_chosen_is_not_warned_of(how, monkeypatch, recwarn):
    monkeypatch.setattr(library, 'unavailable_reason', 'hidden')
    monkeypatch.setattr(library, 'native_devices', dict.fromkeys(library.OPERATORS, ()))
    monkeypatch.setattr(library, 'is_on_purpose', False)
    library._warn_once.cache_clear()
    x = torch.ones(1, 4, 3, 3)
    if how == 'at run time':
        out = run('import os\nos.environ["SAPA_MM_WITH_OPS"] = "0"\n' + USE_TWICE)
        assert out.splitlines()[0] == '0 0 0'
    elif how == 'when built':
        monkeypatch.setattr(library, 'is_on_purpose', True)
        ops.point_affiliation(x, x, x)
    elif how == 'for this call':
        with library.prefer('reference'):
            ops.point_affiliation(x, x, x)
    else:
        monkeypatch.setattr(library, 'is_compiling', lambda: True)
        ops.point_affiliation(x, x, x)
    assert not [w for w in recwarn if 'plain torch' in str(w.message)]
    if how != 'at run time':  # the same without the choice
        monkeypatch.setattr(library, 'is_on_purpose', False)
        monkeypatch.setattr(library, 'is_compiling', lambda: False)
        with pytest.warns(UserWarning, match='plain torch.*: hidden'):
            ops.point_affiliation(x, x, x)
    library._warn_once.cache_clear()


def test_a_build_without_the_operators_is_remembered(monkeypatch, tmp_path):
    """setup.py leaves a mark beside the package's modules; the doctor says so."""
    monkeypatch.delenv('SAPA_MM_WITH_OPS', raising=False)
    monkeypatch.setattr(library.importlib.util, 'find_spec', lambda name: None)
    assert library._load() == 'the package was installed without its compiled operators'
    monkeypatch.setattr(library, '_left_out', tmp_path)
    assert library._load().endswith('without its compiled operators, as SAPA_MM_WITH_OPS=0 asked')


@pytest.fixture
def dataset_cfg(tmp_path):
    """Data that are all there."""
    for name in ('images/train', 'annotations/train'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'train.json').write_text('{}')
    loader = dict(
        dataset=dict(
            type='RepeatDataset',
            dataset=dict(
                data_root=str(tmp_path),
                ann_file='train.json',
                data_prefix=dict(img_path='images/train', seg_map_path='annotations/train', other=None),
            ),
        )
    )
    evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'train.json'))
    return dict(train_dataloader=loader, val_dataloader=loader, val_evaluator=[evaluator], test_dataloader=None)


def test_data_that_are_there_pass(dataset_cfg):
    from mmengine import Config

    from sapa_mm.datasets import check_data_paths

    check_data_paths(dataset_cfg)
    check_data_paths(Config(dataset_cfg))
    dataset_cfg['val_dataloader'] = dict(dataset=dict(data_root='s3://bucket/somewhere', ann_file='x.json'))
    check_data_paths(dataset_cfg)


@pytest.mark.parametrize(
    'change, key',
    [
        (dict(data_root='/no/such/root'), 'train_dataloader.dataset.dataset.data_root'),
        (dict(ann_file='no_such.json'), 'train_dataloader.dataset.dataset.ann_file'),
        (dict(data_prefix=dict(img_path='no_such')), 'train_dataloader.dataset.dataset.data_prefix.img_path'),
    ],
    ids=str,
)
def test_missing_data_are_named(dataset_cfg, change, key):
    from sapa_mm.datasets import check_data_paths

    dataset_cfg['train_dataloader']['dataset']['dataset'].update(change)
    with pytest.raises(FileNotFoundError) as error:
        check_data_paths(dataset_cfg)
    message = str(error.value)
    assert 'no_such' in message or '/no/such/root' in message
    assert f'names it in {key}.' in message and 'docs/data.md' in message
    check_data_paths(dataset_cfg, ['test_dataloader'])  # the others are not asked for


@pytest.mark.parametrize('concatenated', [True, False], ids=['concatenated', 'evaluator'])
def test_missing_data_are_found_in_lists(dataset_cfg, concatenated):
    from sapa_mm.datasets import check_data_paths

    if concatenated:
        good = dataset_cfg['train_dataloader']['dataset']
        dataset_cfg['train_dataloader']['dataset'] = dict(datasets=[good, dict(data_root='/no/such/root')])
        key = r'train_dataloader\.dataset\.datasets\[1\]\.data_root'
    else:
        dataset_cfg['val_evaluator'].append(dict(ann_file='/no/such/root'))
        key = r'val_evaluator\[1\]\.ann_file'
    with pytest.raises(FileNotFoundError, match=key):
        check_data_paths(dataset_cfg)


def test_every_config_names_a_documented_data_root():
    """docs/data.md, to which the message sends, knows the root of every config of this package."""
    from mmengine import Config

    page = (ROOT / 'docs' / 'data.md').read_text()
    for base in sorted((ROOT / 'configs' / '_base_' / 'datasets').glob('*.py')):
        root = Config.fromfile(base).data_root.rstrip('/')
        assert root in page, f'{base.name}: {root}'
    assert 'data/coco' in page  # the base of mmdet


def test_camvid_dataset(tmp_path):
    """Reads the documented layout through mmseg's registry."""
    pytest.importorskip('mmseg')
    import mmseg.datasets  # noqa: F401
    import numpy as np
    from mmengine.registry import DATASETS
    from PIL import Image

    for kind in ('images', 'annotations'):
        (tmp_path / kind / 'train').mkdir(parents=True)
    labels = (np.arange(48).reshape(6, 8) % 12).astype(np.uint8)
    labels[labels == 11] = 255
    for name in ('0001TP_1', '0001TP_2'):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / 'images' / 'train' / f'{name}.jpg')
        Image.fromarray(labels).save(tmp_path / 'annotations' / 'train' / f'{name}.png')
    dataset = DATASETS.build(
        dict(
            type='sapa_mm.CamVidDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
            pipeline=[dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
        )
    )
    assert len(dataset) == 2
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    assert len({tuple(colour) for colour in dataset.metainfo['palette']}) == 11
    sample = dataset[0]
    assert sample['img'].shape == (6, 8, 3) and (sample['gt_seg_map'] == labels).all()


def test_doctor():
    """What is here is reported as here."""
    out = run('import runpy\nrunpy.run_module("sapa_mm.doctor", run_name="__main__")')
    import sapa_mm

    served = f'cpu float32: {ops.backend(torch.empty(1, 8, 8, 8))}'
    for expected in (
        torch.__version__,
        sapa_mm.__version__,
        f'{ops.backend()} operators',
        'mmengine',
        'triton',
        served,
    ):
        assert expected in out.replace('\n', ''), out


def test_doctor_s_report_is_markdown_without_private_names():
    code = (
        'import getpass, os, socket, sys\n'
        'getpass.getuser, socket.gethostname = (lambda: "jane"), (lambda: "janes-box")\n'
        'os.environ.update(HOME="/home/jane", SAPA_MM_GOLDEN="/home/jane/golden", CUDA_HOME="/data/jane/cuda")\n'
        'os.environ.update(OMP_NUM_THREADS="1", OTHER="x")\n'
        'from sapa_mm import doctor\n'
        'doctor.main(["--report"])\n'
        'print(doctor.private("/home/jane2 /srv/home/jane/x janet janes-box 7 @janes-box/jane"))\n'
    )
    *out, last = run(code, block=['mmcv', 'mmdet', 'mmseg']).strip().splitlines()
    assert out[:2] == ['|  | state | found |', '| --- | --- | --- |']
    assert any(line.startswith('| OS | ') for line in out) and 'PyTorch built with:' in out
    for expected in (
        '| `SAPA_MM_GOLDEN` | ~/golden |',
        '| `CUDA_HOME` | /data/<user>/cuda |',
        '| `OMP_NUM_THREADS` | 1 |',
    ):
        assert expected in out
    assert 'OTHER' not in '\n'.join(out) and not any('jane' in line for line in out)
    assert last == '/home/jane2 /srv/home/<user>/x janet janes-box 7 @<host>/<user>'


def test_doctor_says_what_is_missing_and_how_to_mend_it():
    """Everything hidden: still status 0, and a command for each."""
    code = HIDE_LIBRARY + 'import runpy\nrunpy.run_module("sapa_mm.doctor", run_name="__main__")'
    out = run(code, block=['mmcv', 'mmdet', 'mmseg'])
    remedies = [line for line in out.split('\n') if ': ' in line and 'pip install' in line]
    assert 'reference operators' in out and 'Everything is there' not in out
    assert [line.split(':')[0] for line in remedies] == ['sapa_mm.ops', 'mmcv', 'mmseg', 'mmdet']
    assert '--no-build-isolation' in remedies[0]


@pytest.mark.parametrize(
    ('there', 'error', 'state', 'remedy'),
    [
        ({}, 'No module named cv2', None, None),
        ({'opencv-python': '4.12'}, None, 'ok', ''),
        ({'opencv-python': '4.12', 'opencv-python-headless': '4.12'}, None, 'ok', ''),
        (
            {'opencv-python': '4.12', 'opencv-contrib-python': '5.0'}, None, 'broken',
            'pip uninstall -y opencv-python opencv-contrib-python && pip install --no-deps opencv-python==4.12',
        ),
        (
            {'opencv-python': '4.12'}, 'ImportError: libGL.so.1: cannot open', 'broken',
            'pip uninstall -y opencv-python && pip install --no-deps opencv-python-headless==4.12',
        ),
        (
            {'opencv-python': '5.0', 'opencv-python-headless': '4.12'}, 'ImportError: libGL.so.1: none', 'broken',
            'pip uninstall -y opencv-python opencv-python-headless '
            '&& pip install --no-deps opencv-python-headless==4.12',
        ),
    ],
)  # fmt: skip
def test_doctor_sees_two_opencv(there, error, state, remedy, monkeypatch):
    """Their distributions share a folder: of two versions, one writes over a part of the other."""
    from sapa_mm import doctor

    monkeypatch.setattr(doctor, 'installed', there.get)
    monkeypatch.setattr(doctor, 'attempt', lambda module: error)
    rows = doctor.opencv()
    assert [(row[1], row[3]) for row in rows] == ([(state, remedy)] if state else [])
    assert all(f'{name} {version}' in rows[0][2] for name, version in there.items())


def test_doctor_without_torch_or_mmengine():
    code = 'import runpy\nrunpy.run_module("sapa_mm.doctor", run_name="__main__")'
    assert 'torch: pip install torch' in run(code, block=['torch'])
    out = run(code, block=['mmengine'])
    assert any(line.startswith('mmengine: pip install ') for line in out.split('\n'))
