# SPDX-License-Identifier: Apache-2.0
"""The tables of the model zoo are those of the metafiles, and the check sees where they are not."""

import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip('mmengine')

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
    import model_zoo

    return model_zoo


def check(tool, monkeypatch, *args):
    monkeypatch.setattr('sys.argv', ['model_zoo.py', *args])
    try:
        tool.main()
    except SystemExit as error:
        return str(error)
    return ''


@pytest.fixture
def zoo(tool, tmp_path, monkeypatch):
    """A zoo with one folder of this one, the page of its results, and the tool looking at it."""
    shutil.copytree(ROOT / 'configs' / '_base_', tmp_path / 'configs' / '_base_')
    shutil.copytree(ROOT / 'configs' / 'segformer', tmp_path / 'configs' / 'segformer')
    shutil.copytree(ROOT / 'docs' / 'results', tmp_path / 'docs' / 'results')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    assert check(tool, monkeypatch) == ''
    assert check(tool, monkeypatch, '--check') == ''
    return tmp_path


def test_the_stored_zoo(tool, monkeypatch, capsys):
    for toolbox in ('mmseg', 'mmdet'):  # their distributions hold bases
        pytest.importorskip(toolbox)
    assert check(tool, monkeypatch, '--check') == '', capsys.readouterr().out


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_table_that_was_edited(tool, zoo, monkeypatch, capsys):
    change(zoo / 'configs/segformer/README.md', '44.39', '45.39')
    assert 'README.md does not agree with the metafiles' in check(tool, monkeypatch, '--check')
    out = capsys.readouterr().out
    assert '45.39' in out and '44.39' in out
    assert check(tool, monkeypatch) == '' and check(tool, monkeypatch, '--check') == ''


def test_a_metafile_that_was_edited(tool, zoo, monkeypatch):
    change(zoo / 'configs/segformer/metafile.yml', 'mIoU: 44.39', 'mIoU: 45.39')
    assert 'README.md does not agree with the metafiles' in check(tool, monkeypatch, '--check')


def test_a_trained_figure_that_was_not_measured(tool, zoo, monkeypatch):
    change(zoo / 'configs/segformer/metafile.yml', 'mIoU: 37.14', 'mIoU: 47.14')
    assert 'docs/results/README.md has no mIoU 47.14' in check(tool, monkeypatch)


def test_configs_and_models_are_the_same(tool, zoo, monkeypatch):
    folder = zoo / 'configs' / 'segformer'
    shutil.copy(folder / 'segformer_mit-b1_sapa-b_1xb16-160k_ade20k-512x512.py', folder / 'segformer_new.py')
    (folder / 'segformer_mit-b1_sapa-i_1xb16-160k_ade20k-512x512.py').unlink()
    said = check(tool, monkeypatch, '--check')
    assert 'segformer_new.py is missing' in said
    assert 'segformer_mit-b1_sapa-i_1xb16-160k_ade20k-512x512.py does not exist' in said


def test_the_upsampler_is_the_config_s(tool, zoo, monkeypatch):
    config = zoo / 'configs/segformer/segformer_mit-b1_sapa-b_1xb16-160k_ade20k-512x512.py'
    change(config, "similarity='bilinear'", "similarity='inner'")
    assert 'its upsampler is SAPA-I, not SAPA-B' in check(tool, monkeypatch, '--check')


def test_a_folder_without_metafile(tool, zoo, monkeypatch):
    (zoo / 'configs' / 'new_model').mkdir()
    assert 'new_model has no metafile.yml' in check(tool, monkeypatch, '--check')


@pytest.mark.parametrize(
    ('result', 'message'),
    [
        (
            dict(Kind='measured', Metrics=dict(mIoU=1.0), Source='x'),
            "reported, converted, trained, got 'measured'",
        ),
        (dict(Kind='reported', Metrics=dict(mIoU=1.0)), 'needs Metrics and a Source'),
        (dict(Kind='converted', Metrics=dict(mIoU=1.0), Source='x'), 'converted weights need Weights'),
        (dict(Kind='trained', Metrics=dict(mIoU=1.0), Source='README.md'), 'a page under docs/results as Source'),
    ],
)
def test_refuses_results(tool, result, message):
    (problem,) = tool.result_problems(result)
    assert message in problem


@pytest.mark.parametrize(
    ('folder', 'lines'),
    [
        (
            'segformer',  # two data sets; of many upsamplers SAPA-G
            [
                'python tools/train.py configs/segformer/segformer_mit-b1_sapa-g_1xb16-160k_ade20k-512x512.py',
                '  work_dirs/segformer_mit-b0_sapa-g_1xb8-2400_camvid-192x256/iter_2400.pth',
            ],
        ),
        (
            'mask2former',  # the number of GPUs is in the name
            [
                'tools/dist_train.sh '
                'configs/mask2former/mask2former_swin-b-in22k-384x384-pre_sapa-g_8xb2-160k_ade20k-640x640.py 8'
            ],
        ),
        (
            'faster_rcnn',  # or in the batch size; epochs
            ['  work_dirs/faster-rcnn_r50_fpn-sapa-g_1x_coco/epoch_12.pth 8'],
        ),
    ],
)
def test_commands(tool, folder, lines):
    pytest.importorskip('mmdet')  # its distribution holds the bases
    content = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())
    assert set(lines) <= set(tool.commands(content).splitlines())


def test_kinds_are_told_apart(tool):
    """One row per result, each with its kind."""
    results = [
        dict(Kind='reported', Metrics=dict(mIoU=41.5), Source='the paper'),
        dict(Kind='converted', Metrics=dict(mIoU=41.44), Source='the repository', Weights='https://example.org/a.pth'),
        {
            **dict(Kind='trained', Metrics=dict(bIoU=30.0), Source='docs/results/README.md', Note='one run'),
            'Recorded As': 'Here',
        },
    ]
    metadata = {'Training Data': 'ADE20K', 'Upsampler': 'SAPA-B', 'Parameters': 13_820_000}
    metadata |= dict(MACs=16_900_000_000, Input='512x512')
    rows = tool.table(dict(Models=[dict(Config='configs/a/b.py', Metadata=metadata, Results=results)])).splitlines()[2:]
    start = '| [b](b.py) | SAPA-B | ADE20K | 13.82 M | 16.90 G (512x512) |'
    assert rows == [
        f'{start} 41.50 | - | reported in the paper | the paper |',
        f'{start} 41.44 | - | converted weights | [weights](https://example.org/a.pth), the repository |',
        f'{start} - | 30.0 | **trained here** | [Here](../../docs/results/README.md); one run |',
    ]


def test_costs_are_counted(tool, zoo, monkeypatch):
    """Of a folder with one small config; what stands there is what get_flops.py says."""
    pytest.importorskip('mmdet.models')
    folder = zoo / 'configs' / 'segformer'
    name = 'segformer_mit-b0_sapa-g_1xb8-2400_camvid-192x256'
    metafile = folder / 'metafile.yml'
    content = yaml.safe_load(metafile.read_text())
    content['Models'] = [model for model in content['Models'] if model['Name'] == name]
    stored = dict(content['Models'][0]['Metadata'])
    for key in ('Parameters', 'MACs', 'Input'):
        del content['Models'][0]['Metadata'][key]
    metafile.write_text(yaml.safe_dump(content))
    tool.write_costs(folder)
    assert yaml.safe_load(metafile.read_text())['Models'][0]['Metadata'] == stored
