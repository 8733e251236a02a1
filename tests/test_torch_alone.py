# SPDX-License-Identifier: Apache-2.0
"""The package with nothing but torch, and its names, which are loaded when they are asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

import sapa_mm

# As if they were not installed, however they are asked for.
BLOCK = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmseg', 'mmdet', 'cv2'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Finder())
sys.modules['numpy'] = None  # torch looks for it, and takes no exception
"""

TRAIN_ALL = (Path(__file__).parent / 'train_upsamplers.py').read_text()
MISTAKES = """
from sapa_mm import SAPA, convert
assert MODELS.get('mmdet.FPN') is None
for wrong, error in (
    (lambda: SAPA(4, init_cfg=dict(type='Normal')), ImportError),
    (lambda: build_upsampler(dict(type='SAPPA'), 4, 4), TypeError),
    (lambda: MODELS.build(dict(type='SAPPA')), KeyError),
    (lambda: MODELS.register_module(module=SAPA), KeyError),
    (lambda: MODELS.build(dict(type='GuidedFPN')), ImportError),
    (lambda: MODELS.build(dict(type='GuidedUNet')), ImportError),
):
    try:
        wrong()
    except error as message:
        print(message)
    else:
        raise AssertionError(error)
print([name for name in sys.modules if name.partition('.')[0] in ('mmengine', 'mmcv')])
"""


def run(code):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def test_every_upsampler_trains_with_torch_alone():
    trained, *errors, modules = run(BLOCK + TRAIN_ALL + MISTAKES)
    assert trained.startswith('trained ')
    assert modules == '[]'
    assert errors[0].startswith('init_cfg needs mmengine, which is not installed')
    assert errors[1] == "upsample_cfg: type 'SAPPA' is no upsampler; did you mean 'sapa_mm.SAPA'?"
    assert 'mmengine is not installed' in errors[2] and 'already registered' in errors[3]
    assert errors[4].startswith('GuidedFPN needs mmdet or mmseg, which cannot be imported')
    assert errors[5].startswith('GuidedUNet needs mmseg, which cannot be imported')


def test_a_broken_mmengine_is_not_taken_for_a_missing_one():
    """What it lacks is said; otherwise nothing would be registered, and nobody would know why."""
    pytest.importorskip('mmengine')
    out = run(
        "import sys\nsys.modules['yaml'] = None\n"
        'try:\n    import sapa_mm.registry\nexcept ImportError as error:\n    print(error.name)\n'
    )
    assert out == ['yaml']


def test_names_are_those_of_the_submodules():
    """The list in the package, which imports none of them, is whole, and each name is what the submodule has."""
    from importlib import import_module

    pytest.importorskip('mmengine')
    for submodule in ('upsamplers', 'backbones', 'necks', 'decode_heads', 'pixel_decoders', 'mask_heads'):
        assert set(sapa_mm._SUBMODULES[submodule]) >= set(import_module(f'sapa_mm.{submodule}').__all__), submodule
    for name, submodule in sapa_mm._HOME.items():
        assert name in dir(sapa_mm)
        assert getattr(sapa_mm, name) is getattr(import_module(f'sapa_mm.{submodule}'), name)
    assert sapa_mm.ops.backend() in ('native', 'reference')
    with pytest.raises(AttributeError, match="module 'sapa_mm' has no attribute 'SAPPA'"):
        _ = sapa_mm.SAPPA


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_a_config_may_leave_out_the_scope(scope):
    pytest.importorskip(f'{scope}.models')
    from mmengine.registry import MODELS, DefaultScope

    cfg = dict(type='sapa_mm.GuidedFPN', in_channels=[4, 4], out_channels=4, num_outs=2, upsample_cfg=dict(type='SAPA'))
    with DefaultScope.overwrite_default_scope(scope):
        assert type(MODELS.build(cfg).upsamplers[0]) is sapa_mm.SAPA


@pytest.mark.parametrize('option', ['mode', 'scale_factor', 'align_corners'])
def test_what_a_base_config_left_names_delete(option):
    """`dict(mode='nearest')` of a base and `dict(type='sapa_mm.SAPA')` are merged into one."""
    with pytest.raises(TypeError, match=f"SAPA has no option '{option}'.* add _delete_=True"):
        sapa_mm.build_upsampler({'type': 'SAPA', option: 'nearest'}, 4, 4)
