# SPDX-License-Identifier: Apache-2.0
"""docs/results/studies: tables are made of the runs beside them, and the text has its intervals from the tables."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

for needed in ('mmengine', 'scipy', 'matplotlib', 'rich'):
    pytest.importorskip(needed)
ROOT = Path(__file__).parents[1]
STUDIES = ROOT / 'docs' / 'results' / 'studies'
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tools' / 'dev')]
import compare  # noqa: E402
import known_signals_tables  # noqa: E402

FINISHED = sorted(path.parent.name for path in STUDIES.glob('*/runs'))
INTERVAL = re.compile(r'[+-]\d+\.\d+\s\[[+-]\d+\.\d+,\s[+-]\d+\.\d+\]')


@pytest.mark.parametrize('name', FINISHED)
def test_report(name, tmp_path):
    study = STUDIES / f'{name}.py'
    shutil.copytree(STUDIES / name / 'runs', tmp_path / 'runs')
    compare.write_report(SimpleNamespace(study=study, work_dir=tmp_path), compare.read_study(study))
    assert (tmp_path / 'report.md').read_text() == (STUDIES / name / 'report.md').read_text()
    planned = {compare.result_path(tmp_path, run) for run in compare.runs(compare.read_study(study))}
    assert {*(tmp_path / 'runs').iterdir()} <= planned


def test_tables_of_known_signals(tmp_path, monkeypatch):
    shutil.copytree(STUDIES, tmp_path / 'studies')
    (tmp_path / 'studies' / 'known_signals.md').unlink()
    monkeypatch.setattr(sys, 'argv', ['known_signals_tables.py', str(tmp_path / 'studies')])
    known_signals_tables.main()
    assert (tmp_path / 'studies' / 'known_signals.md').read_text() == (STUDIES / 'known_signals.md').read_text()


def test_intervals_of_the_text():
    tables = '\n'.join(path.read_text() for path in (STUDIES / 'known_signals.md', *STUDIES.glob('*/report.md')))
    known = {*INTERVAL.findall(tables)}
    for page, least in ((STUDIES / 'README.md', 10), (ROOT / 'README.md', 1)):
        told = [' '.join(interval.split()) for interval in INTERVAL.findall(page.read_text())]
        assert len(told) > least and not {*told} - known
