# SPDX-License-Identifier: Apache-2.0
"""tools/check_data.py, and the look that tools/train.py takes: each kind of bad data and its line."""

import importlib
import json
import shutil

import numpy as np
import pytest

pytest.importorskip('mmseg')
from tool_helpers import TOOLS, make_tiny

cv2 = pytest.importorskip('cv2')


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp('data'))


@pytest.fixture
def config(good, tmp_path):
    """The tiny config with data of its own."""
    shutil.copytree(good.parent / 'data', tmp_path / 'data')
    path = tmp_path / 'tiny.py'
    path.write_text(good.read_text().replace(str(good.parent), str(tmp_path)))
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a tool; returns its status and the lines of stdout and stderr."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv('COLUMNS', '120')

    def call(tool, *args):
        monkeypatch.setattr('sys.argv', [f'{tool}.py', *map(str, args)])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(tool).main()
        printed = capsys.readouterr()
        return end.value.code, printed.out.splitlines(), printed.err.splitlines()

    return call


def spoil(config, kind):
    """Break the third picture or its label map; returns the path that must be named."""
    picture, labels = (config.parent / 'data' / folder / '2.png' for folder in ('images', 'annotations'))
    path = picture if 'picture' in kind else labels
    content, good = path.read_bytes(), cv2.imread(str(labels), cv2.IMREAD_UNCHANGED)
    if kind.startswith('empty'):
        path.write_bytes(b'')
    elif kind.startswith('cut'):
        path.write_bytes(content[: len(content) // 2])
    elif kind.startswith('missing'):
        path.unlink()
    elif kind.startswith('text'):
        path.write_text('no picture')
    elif kind == 'labels of another size':
        cv2.imwrite(str(path), good[:40])
    elif kind == 'label out of range':
        good[:2, :5] = 3
        cv2.imwrite(str(path), good)
    elif kind == 'label beyond 8 bits':  # which mmseg cuts to 0
        cv2.imwrite(str(path), np.where(good == 1, np.uint16(256), good))
    elif kind == 'RGB labels':
        cv2.imwrite(str(path), cv2.cvtColor(good, cv2.COLOR_GRAY2BGR))
    return path


BAD = {
    'empty picture': 'the file must be a picture, but it is empty (0 bytes)',
    'empty labels': 'the file must be a picture, but it is empty (0 bytes)',
    'cut picture': 'the file must be a whole picture, but it cannot be read: ',
    'cut labels': 'the file must be a whole picture, but it cannot be read: ',
    'text as picture': 'the file must be a picture, but it is of no known format',
    'missing labels': 'the file must exist, but there is none',
    'labels of another size': 'a label map must have the size of its picture, but it has 48 x 40 and ',
    'label out of range': 'labels must be 0 to 2 or 255, but it has 3 in 10 pixels',
    'label beyond 8 bits': 'labels must be 0 to 2 or 255, but it has 256 in ',
    'RGB labels': 'a label map must have one channel, but it has 3 channels',
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_file_is_named(kind, config, call):
    path = spoil(config, kind)
    status, out, _ = call('check_data', config)
    lines = [line for line in out if str(config.parent) in line]
    assert status == 1 and len(lines) == 1 and lines[0].startswith(f'{path}: {BAD[kind]}'), out
    # the same before a training, in one line, and nothing is written
    work = config.parent / 'work'
    status, _, err = call('train', config, '--work-dir', work)
    assert status == 2 and len(err) == 1 and err[0].startswith(f'error: {path}: {BAD[kind]}'), err
    assert '--no-data-check' in err[0] and not work.exists()


def test_good_data_pass(config, call):
    status, out, _ = call('check_data', config)
    rows = [line.strip('│┃ ').split('│') for line in out if 'BaseSegDataset' in line]
    assert status == 0
    # val and test are the same as train but for their transforms
    assert [[cell.strip() for cell in row] for row in rows] == [
        ['train_dataloader.dataset', 'BaseSegDataset', '8', '8', '0', '0']
    ]
    status, out, _ = call('check_data', config, '--limit', '3')
    assert status == 0 and any('│ 3 ' in line for line in out)


def test_labels_that_mmseg_maps(config, call):
    """0 is ignored and the classes count from 1; 255 stays what it is."""
    labels = config.parent / 'data/annotations/2.png'
    good = cv2.imread(str(labels), cv2.IMREAD_UNCHANGED) + 1
    options = [config, '--cfg-options', 'train_dataloader.dataset.reduce_zero_label=True', '--dataloaders']
    good[0, :3] = 0, 255, 3
    cv2.imwrite(str(labels), good)
    assert call('check_data', *options, 'train_dataloader')[0] == 0
    good[0, 0] = 4
    cv2.imwrite(str(labels), good)
    status, out, _ = call('check_data', *options, 'train_dataloader')
    assert status == 1 and f'{labels}: labels must be 1 to 3 or 0, but it has 4 in 1 pixels' in out


def test_empty_data_set(config, call):
    status, out, _ = call('check_data', config, '--cfg-options', 'train_dataloader.dataset.img_suffix=.jpg')
    folders = ', '.join(str(config.parent / 'data' / folder) for folder in ('images', 'annotations'))
    rule = 'train_dataloader.dataset: the data set must have pictures'
    assert status == 1 and f'{rule}, but it is empty: none in {folders} with the suffix .jpg' in out


def test_data_set_that_cannot_be_built(config, call):
    status, out, _ = call('check_data', config, '--cfg-options', 'val_dataloader.dataset.no_such_option=1')
    assert status == 1
    assert any(line.startswith('val_dataloader.dataset: the data set must load, but TypeError says: ') for line in out)


def test_training_can_go_on_nevertheless(config, call, monkeypatch):
    """`--no-data-check`: the label that is out of range is not looked for."""
    spoil(config, 'label out of range')
    monkeypatch.syspath_prepend(str(TOOLS))
    train = importlib.import_module('train')
    monkeypatch.setattr(train, 'build_runner', lambda *_: (_ for _ in ()).throw(SystemExit(7)))
    assert call('train', config, '--work-dir', config.parent / 'work', '--no-data-check')[0] == 7


DETECTION = """
default_scope = 'mmdet'
model = dict(type='FasterRCNN')
train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(
    type='CocoDataset', data_root='DATA', ann_file='boxes.json', data_prefix=dict(img='images'),
    metainfo=dict(classes=('cell', 'rod')), filter_cfg=dict(filter_empty_gt=True))))
"""
ANNOTATION = dict(id=5, image_id=1, category_id=2, bbox=[10, 10, 20, 30], area=600, iscrowd=0)
BAD_ANNOTATIONS = {
    'outside': (
        dict(annotations=[dict(ANNOTATION, bbox=[60, 10, 20, 30])]),
        'a box must lie in its picture, but annotation 5 has [60, 10, 20, 30] in 0.png of 48 x 48',
    ),
    'unknown category': (
        dict(annotations=[ANNOTATION, dict(ANNOTATION, id=6, category_id=9)]),
        'category_id must be a category, but annotation 6 has 9, not one of 1, 2',
    ),
    'unknown picture': (
        dict(annotations=[ANNOTATION, dict(ANNOTATION, id=6, image_id=4)]),
        'image_id must be a picture of the file, but annotation 6 has 4',
    ),
    'unknown class': (
        dict(categories=[dict(id=1, name='cells'), dict(id=2, name='rod')]),
        "each class of the data set must be a category, but 'cell' is not: cells, rod",
    ),
    'other size': (
        dict(images=[dict(id=1, file_name='0.png', width=64, height=48)]),
        'a picture must have the size of its annotations, but it has 48 x 48 and its annotations 64 x 48',
    ),
    'no annotation': (
        dict(annotations=[]),
        'the data set must have pictures, but it is empty: none in ',
    ),
    'no categories': (
        dict(categories=None),
        'the file needs images, annotations and categories, but it lacks categories',
    ),
    'cut': (None, 'the annotation file must be JSON, but it is not: '),
}


@pytest.fixture
def boxes(config):
    """A detection config on the pictures, and a function that writes its annotation file."""
    pytest.importorskip('mmdet.datasets')
    path = config.with_name('boxes.py')
    path.write_text(DETECTION.replace('DATA', str(config.parent / 'data')))

    def write(**changes):
        content = dict(
            images=[dict(id=1, file_name='0.png', width=48, height=48)],
            annotations=[ANNOTATION],
            categories=[dict(id=1, name='cell'), dict(id=2, name='rod')],
        )
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        (config.parent / 'data/boxes.json').write_text(json.dumps(content))

    return path, write


@pytest.mark.parametrize('kind', BAD_ANNOTATIONS)
def test_bad_annotation_is_named(kind, boxes, call):
    config, write = boxes
    changes, expected = BAD_ANNOTATIONS[kind]
    write(**changes or {})
    file = config.parent / 'data/boxes.json'
    if kind == 'cut':
        file.write_text(file.read_text()[:40])
    status, out, _ = call('check_data', config)
    (line,) = [line for line in out if ', but ' in line]
    place = {'other size': config.parent / 'data/images/0.png', 'no annotation': 'train_dataloader.dataset.dataset'}
    assert status == 1 and line.startswith(f'{place.get(kind, file)}: {expected}'), out


def test_good_annotations_pass(boxes, call):
    config, write = boxes
    # as files round
    write(annotations=[ANNOTATION, dict(ANNOTATION, id=6, bbox=[-0.4, 30, 20, 18.9], area=378)])
    status, out, _ = call('check_data', config)
    assert status == 0 and any('CocoDataset' in line and ' 2 ' in line for line in out)


def test_orientation_of_a_photo(tmp_path):
    """A photo on its side has the size in which OpenCV, hence a training, sees it."""
    from PIL import Image

    from sapa_mm.datasets.faults import read_picture

    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / 'photo.jpg')
    Image.new('RGB', (40, 30)).save(path, exif=exif)
    pixels, faults = read_picture(path)
    assert faults == [] and pixels.shape == cv2.imread(path).shape == (40, 30, 3)
