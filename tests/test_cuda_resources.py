# SPDX-License-Identifier: Apache-2.0
"""The table of the kernels' registers: its arithmetic, and that the page shows what is stored."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def resources(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
    return importlib.import_module('cuda_resources')


@pytest.mark.parametrize(
    'registers, blocks', [(32, 8), (33, 6), (64, 4), (65, 3), (80, 3), (81, 2), (128, 2), (255, 1)]
)
def test_resident_blocks(resources, registers, blocks):
    assert resources.resident_blocks(registers) == blocks


def test_page_shows_what_is_stored(resources):
    stored = json.loads((ROOT / 'docs' / 'benchmarks' / 'cuda_kernels.json').read_text())
    assert resources.table(stored) in (ROOT / 'docs' / 'gpu_roofline.md').read_text()


def test_bad_input(resources, monkeypatch, tmp_path, capsys):
    for argument in (f'now={tmp_path / "nothing"}', str(tmp_path)):
        monkeypatch.setattr('sys.argv', ['cuda_resources.py', argument])
        with pytest.raises(SystemExit):
            resources.main()
        assert 'must be LABEL=FOLDER with a folder that is there' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='no kernel in the objects of'):
        resources.kernels(tmp_path, 'cuobjdump')
