# SPDX-License-Identifier: Apache-2.0
"""Curves of one run and of several, from the files that mmengine writes."""

import importlib
import json

import numpy as np
import pytest

pytest.importorskip('matplotlib')
pytest.importorskip('mmengine')
from tool_helpers import TOOLS


def write(folder, *entries, time='20260101_000000', end=''):
    path = folder / time / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries) + end)
    return folder


@pytest.fixture
def plot(monkeypatch):
    """Call the tool; return the figures' lines by title and label."""
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = importlib.import_module('plot_curves')

    def call(*args):
        from matplotlib.figure import Figure

        drawn = {}

        def savefig(figure, path, **options):
            for axes in figure.axes:
                for line in axes.lines:
                    drawn[axes.get_title() or axes.get_ylabel(), line.get_label()] = np.asarray(
                        line.get_xydata()
                    ).tolist()

        with monkeypatch.context() as patch:
            patch.setattr('sys.argv', ['plot_curves.py', *map(str, args)])
            if 'drawn' in args:
                patch.setattr(Figure, 'savefig', savefig)
            tool.main()
        return drawn

    return call


@pytest.fixture
def runs(tmp_path):
    """One by iterations, interrupted in the middle of a line and resumed; one by epochs of five iterations."""
    a, b = tmp_path / 'a' / 'run', tmp_path / 'b' / 'run'
    write(a, dict(loss=4.0, step=1), dict(loss=9.0, step=2), end='{"loss": 1')
    write(a, dict(loss=3.0, step=2), dict(mIoU=50.0, step=2), time='20260102_000000')
    write(
        b, *(dict(loss=8.0 - s, step=s, epoch=1 + s // 6, iter=s, time=0.1) for s in (3, 5, 8, 10)),
        dict(mIoU=20.0, step=1), dict(mIoU=30.0, step=2),
    )  # fmt: skip
    return a, b


def test_one_run(runs, plot, tmp_path):
    drawn = plot(runs[0], 'drawn')
    assert drawn == {('loss', 'loss (training)'): [[1, 4], [2, 3]], ('mIoU', 'mIoU (validation)'): [[2, 50]]}
    plot(runs[0], tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 5000


def test_several_runs(runs, plot):
    """A plot a metric; folders of one name are told apart; epochs are where their iterations end."""
    drawn = plot(*runs, 'drawn')
    assert drawn == {
        ('loss', 'a/run'): [[1, 4], [2, 3]], ('loss', 'b/run'): [[3, 5], [5, 3], [8, 0], [10, -2]],
        ('mIoU', 'a/run'): [[2, 50]], ('mIoU', 'b/run'): [[5, 20], [10, 30]],
    }  # fmt: skip
    assert set(plot(*runs, 'drawn', '--metrics', 'mIoU', '--labels', 'x', 'y')) == {('mIoU', 'x'), ('mIoU', 'y')}


def test_wrong_input_is_one_line(runs, plot, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    for arguments, message in (
        ((tmp_path / 'none', 'x.png'), 'there is no folder'),
        ((tmp_path / 'empty', 'x.png'), 'has no */vis_data/scalars.json with a loss'),
        (runs, 'the last argument is the picture to write'),
        ((*runs, 'x.png', '--labels', 'one'), 'each run needs a label of its own: 2 runs, labels one'),
        ((*runs, 'x.png', '--metrics', 'mAP'), "no metric of the name 'mAP' is logged; there are loss, mIoU"),
        ((*runs, tmp_path / 'x.txt'), 'x.txt cannot be written'),
    ):
        with pytest.raises(SystemExit) as end:
            plot(*arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith('error: ') and message in line, line
