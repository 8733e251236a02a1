# SPDX-License-Identifier: Apache-2.0
"""docs/cost_tables.md is what the models cost, and what it says about published figures holds."""

from pathlib import Path

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmdet.models')

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
        import cost_tables
    cost_tables.register_toolboxes()
    return cost_tables


@pytest.fixture(scope='module')
def page(tool):
    return tool.page()


def test_the_stored_page(page):
    assert page == (ROOT / 'docs' / 'cost_tables.md').read_text(), 'run python tools/dev/cost_tables.py'


@pytest.mark.parametrize(
    ('model', 'macs', 'params'),
    [
        ('SegFormer-B1, 512x512', ('0.75', '1.02', '1.45'), ('0.00', '0.10', '0.44')),
        ('MaskFormer Swin-B, 640x640', ('0.43', '0.59', '0.84'), ('0.00', '0.05', '0.22')),
        ('Mask2Former Swin-B, 640x640', ('0.33', '0.45', '0.63'), ('0.00', '0.02', '0.07')),
        ('Faster R-CNN and Panoptic FPN, 800x1344', (), ('0.00', '0.05', '0.22')),
    ],
)
def test_headline_columns(page, model, macs, params):
    """Of SAPA-I, SAPA-B and CARAFE in the published README: every one is there, and equal."""
    section = page.partition(f'## {model}\n')[2].partition('\n## ')[0]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in section.splitlines() if line.startswith('|')]
    for figures, of, unit in ((macs, 'MACs', 'G'), (params, 'parameters', 'M')):
        for figure, upsampler in zip(figures, ('SAPA-I', 'SAPA-B', 'CARAFE')):
            row = next(r for r in rows if r[:4] == [upsampler, 'SAPA', of, f'+{figure} {unit}'])
            assert row[5].startswith('equal')


def test_without_upsampler_costs_as_nearest(tool):
    """What is called added is so beside the model without any upsampler."""
    model = tool.TABLES['segformer']
    without, nearest = model.costs(None), model.costs(tool.UPSAMPLERS['Nearest'])
    assert (without.params, without.macs) == (nearest.params, nearest.macs) and without.params > 0 < without.macs


@pytest.mark.parametrize(
    ('counted', 'figure', 'result'),
    [
        (0.7471e9, '0.75G', 'equal'),
        (0.63734e9, '0.63G', 'equal, cut'),
        (0.63734e9, '0.64G', 'equal'),
        (0.6401e9, '0.63G', ''),
        (79_992, '80K', 'equal'),
        (79_400, '80K', ''),
        (101.83e6, '102M', 'equal'),
    ],
)
def test_agrees(tool, counted, figure, result):
    assert tool.agrees(counted, figure) == result


def test_explanations_have_to_lead_there(tool):
    def verdict(counted, **printed):
        return tool.verdict(tool.Printed('model', 'upsampler', 'macs', '1.50G', 'paper', **printed), counted, ())

    assert verdict(0.75e9, times=2) == 'equal'
    assert verdict(2e9, why='half', gives=lambda counted, _: counted * 0.75) == 'explained: half (1.500 G)'
    assert verdict(2e9, why='a slip') == 'differs: a slip'
    with pytest.raises(ValueError, match='nothing explains the difference'):
        verdict(2e9)
    with pytest.raises(ValueError, match='the explanation leads to 1'):
        verdict(2e9, why='half', gives=lambda counted, _: counted / 2)
    with pytest.raises(ValueError, match='equal, and yet explained'):
        verdict(1.5e9, why='a slip')


def test_check(tool, page, tmp_path, monkeypatch, capsys):
    """``--check`` passes on the stored page and shows the line that was changed."""
    stored = tmp_path / 'cost_tables.md'
    monkeypatch.setattr(tool, 'PAGE', stored)
    monkeypatch.setattr(tool, 'page', lambda: page)
    monkeypatch.setattr('sys.argv', ['cost_tables.py', '--check'])
    stored.write_text(page)
    tool.main()
    stored.write_text(page.replace('| SAPA-B | 0.105 M |', '| SAPA-B | 0.104 M |', 1))
    with pytest.raises(SystemExit, match='run python tools/dev/cost_tables.py'):
        tool.main()
    assert '-| SAPA-B | 0.104 M |' in capsys.readouterr().out
