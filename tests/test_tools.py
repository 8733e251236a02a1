# SPDX-License-Identifier: Apache-2.0
"""The command-line tools, run as a user runs them, on a data set of a few pictures."""

import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')
from tool_helpers import ROOT, TOOLS, command, make_tiny, run, start, wait_until, weights

cv2 = pytest.importorskip('cv2')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A tiny mmseg config and its data: eight pictures."""
    return make_tiny(tmp_path_factory.mktemp('tools'))


@pytest.fixture(scope='module')
def trained(config):
    """The work dir of an uninterrupted run; it draws its own seed."""
    run('train.py', config, '--work-dir', config.parent / 'whole', '--cfg-options', 'randomness.seed=3')
    return config.parent / 'whole'


def test_resume_after_kill_is_exact(config, trained):
    """Killed in the middle, resumed: the weights of the whole run, whatever the number of workers."""
    folder = config.parent / 'killed'
    options = ['--work-dir', folder, '--cfg-options', 'randomness.seed=3', 'train_dataloader.num_workers=2']
    process = start('train.py', config, *options)
    wait_until((folder / 'last_checkpoint').exists, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / 'iter_40.pth').exists(), 'the run was over before it was killed'

    out = run('train.py', config, '--resume', *options)
    assert 'resumed epoch: 0, iter: ' in out
    expected, result = weights(trained / 'iter_40.pth'), weights(folder / 'iter_40.pth')
    assert expected.keys() == result.keys()
    different = [name for name in expected if not torch.equal(expected[name], result[name])]
    assert not different
    earlier = weights(trained / 'iter_10.pth')
    assert any(not torch.equal(earlier[name], result[name]) for name in result), 'nothing was trained after the resume'


@pytest.fixture
def check_checkpoint(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import _common

    return _common.check_checkpoint


def broken(good, path, kind):
    """Write a file that is no checkpoint, each kind another way to be none."""
    content = good.read_bytes()
    if kind == 'missing':
        return
    if kind == 'flipped':  # a weight of the middle, which only the checksum can tell
        middle = len(content) // 2
        content = content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 64]) + content[middle + 64 :]
    path.write_bytes(
        {'empty': b'', 'cut': content[: len(content) // 2], 'text': b'not a checkpoint'}.get(kind, content)
    )
    if kind == 'list':
        torch.save([1, 2, 3], path)


@pytest.mark.parametrize('kind', ['missing', 'empty', 'cut', 'flipped', 'text', 'list'])
def test_bad_checkpoint_is_named(kind, trained, tmp_path, check_checkpoint, capsys):
    path = tmp_path / 'bad.pth'
    broken(trained / 'iter_40.pth', path, kind)
    with pytest.raises(SystemExit) as end:
        check_checkpoint(str(path))
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.startswith('error: ') and str(path) in message and message.count('\n') == 1


def test_good_checkpoint_passes(trained, tmp_path, check_checkpoint, capsys):
    check_checkpoint(str(trained / 'iter_40.pth'), resume=True)
    torch.save(weights(trained / 'iter_40.pth'), tmp_path / 'weights.pth')
    check_checkpoint(str(tmp_path / 'weights.pth'))
    # The classic stack knows no list of mmengine's own types: a checkpoint that holds some is a foreign one there.
    listed = hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals')
    assert ('warning: ' in capsys.readouterr().err) == (not listed)
    with pytest.raises(SystemExit):
        check_checkpoint(str(tmp_path / 'weights.pth'), resume=True)
    assert 'no training state' in capsys.readouterr().err


def test_foreign_checkpoint_is_refused_unless_trusted(trained, tmp_path, check_checkpoint, capsys):
    path = tmp_path / 'foreign.pth'
    torch.save(dict(state_dict=weights(trained / 'iter_40.pth'), extra=Path('x')), path)
    if sys.modules['_common'].CAN_ALLOW_TYPES:
        with pytest.raises(SystemExit):
            check_checkpoint(str(path))
        assert '--trust' in capsys.readouterr().err
    else:
        check_checkpoint(str(path))
        assert capsys.readouterr().err.startswith('warning: ')
    check_checkpoint(str(path), trust=True)
    assert capsys.readouterr().err == ''


KEEP_ONE = ('default_hooks.checkpoint.max_keep_ckpts=1', 'randomness.seed=3')


@pytest.fixture(scope='module')
def half_trained(config):
    """A work dir with the checkpoint of iteration 20 alone, as a run that keeps one leaves it."""
    folder = config.parent / 'half'
    run('train.py', config, '--work-dir', folder, '--cfg-options', *KEEP_ONE, 'train_cfg.max_iters=20')
    assert [p.name for p in folder.glob('*.pth*')] == ['iter_20.pth']
    return folder


@pytest.mark.parametrize('harm', ['gone', 'cut', 'part'])
def test_resume_takes_the_newest_whole_checkpoint(harm, config, trained, half_trained, tmp_path):
    """`last_checkpoint` names a file that a kill took away or cut short, or one was just being written."""
    folder = tmp_path / 'work'
    shutil.copytree(half_trained, folder)
    newer = folder / ('iter_30.pth.part' if harm == 'part' else 'iter_30.pth')
    if harm != 'gone':
        broken(trained / 'iter_40.pth', newer, 'cut')
    if harm != 'part':
        (folder / 'last_checkpoint').write_text(str(newer))
    out = run('train.py', config, '--resume', '--work-dir', folder, '--cfg-options', *KEEP_ONE)
    assert 'iter: 20' in out and (f'passed over: the checkpoint {newer}' in out) == (harm == 'cut')
    assert (f'passed over: there is no checkpoint {newer}' in out) == (harm == 'gone')
    expected, result = weights(trained / 'iter_40.pth'), weights(folder / 'iter_40.pth')
    assert all(torch.equal(expected[name], result[name]) for name in expected)
    assert [p.name for p in folder.glob('*.pth*')] == ['iter_40.pth']


def test_full_disk_leaves_the_last_checkpoint(config, half_trained, tmp_path):
    """A disk that takes no file as large as a checkpoint: one line, and the checkpoint before is as it was."""
    resource = pytest.importorskip('resource')
    folder = tmp_path / 'work'
    shutil.copytree(half_trained, folder)
    before = (folder / 'iter_20.pth').read_bytes()
    limit = len(before) // 2
    arguments, options = command('train.py', config, '--resume', '--work-dir', folder, '--cfg-options', *KEEP_ONE)
    options['preexec_fn'] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = subprocess.run(arguments, timeout=300, **options)
    assert done.returncode == 2 and 'Traceback' not in done.stdout
    assert 'error: the disk cannot be written: File too large' in done.stdout
    assert [p.name for p in folder.glob('*.pth*')] == ['iter_20.pth']
    assert (folder / 'iter_20.pth').read_bytes() == before


def test_nothing_whole_to_resume_is_an_error(config, trained, tmp_path):
    broken(trained / 'iter_40.pth', tmp_path / 'iter_40.pth', 'cut')
    out = run('train.py', config, '--resume', '--work-dir', tmp_path, status=2)
    assert f'error: no checkpoint in {tmp_path} can be resumed: the checkpoint {tmp_path / "iter_40.pth"}' in out


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_nothing_is_written_for_a_bad_checkpoint(tool, config, trained, tmp_path):
    bad = tmp_path / 'bad.pth'
    broken(trained / 'iter_40.pth', bad, 'cut')
    before = bad.read_bytes()
    arguments = ['--resume', bad] if tool == 'train.py' else [bad]
    out = run(tool, config, *arguments, '--work-dir', tmp_path / 'work', status=2)
    assert f'error: the checkpoint {bad}' in out and 'Traceback' not in out
    assert bad.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ['bad.pth']


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_missing_data_are_named(tool, config, trained, tmp_path):
    key = {'train.py': 'train_dataloader', 'test.py': 'test_dataloader'}[tool]
    arguments = [] if tool == 'train.py' else [trained / 'iter_40.pth']
    out = run(
        tool,
        config,
        *arguments,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'{key}.dataset.data_root=/no/such/place',
        status=2,
    )
    assert '/no/such/place' in out and 'docs/data.md' in out and 'Traceback' not in out
    assert not (tmp_path / 'work').exists()


def test_test_writes_label_maps_and_paintings(config, trained, tmp_path):
    """The options of mmseg's test.py: metrics, --out and --show-dir."""
    out = run(
        'test.py',
        config,
        trained / 'iter_40.pth',
        '--work-dir',
        tmp_path / 'work',
        '--out',
        tmp_path / 'out',
        '--show-dir',
        tmp_path / 'show',
    )
    assert 'mIoU' in out
    maps = sorted((tmp_path / 'out').glob('*.png'))
    assert len(maps) == 8 and cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED).shape == (48, 48)
    assert len(list((tmp_path / 'show').rglob('*.png'))) == 8


def test_amp_and_auto_scale_lr(config, tmp_path):
    """Both options reach the runner; the learning rate is scaled by 3 / 6."""
    out = run(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        '--amp',
        '--auto-scale-lr',
        '--cfg-options',
        'train_cfg.max_iters=2',
        'auto_scale_lr.enable=False',
        'auto_scale_lr.base_batch_size=6',
    )
    assert 'Scaling the original LR by 0.5' in out
    dumped = (tmp_path / 'tiny.py').read_text()
    assert ('AmpOptimWrapper' if torch.cuda.is_available() else 'sapa_mm.CPUAmpOptimWrapper') in dumped
    state = weights(tmp_path / 'iter_2.pth')
    assert all(torch.isfinite(w).all() for w in state.values())


def test_demo_dataset(tmp_path, monkeypatch):
    """The same seed gives the same files, another one others, and nobody's folder is overwritten."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from make_demo_dataset import is_complete, make_dataset

    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        make_dataset(tmp_path / name, seed)
        assert is_complete(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*.png'))
    assert len(files) == 912
    same = [(tmp_path / 'a' / f).read_bytes() == (tmp_path / 'b' / f).read_bytes() for f in files]
    other = [(tmp_path / 'a' / f).read_bytes() == (tmp_path / 'c' / f).read_bytes() for f in files]
    assert all(same) and not any(other)
    labels = [cv2.imread(str(tmp_path / 'a' / f), cv2.IMREAD_UNCHANGED) for f in files if f.parts[0] == 'annotations']
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4} and labels[0].shape == (128, 128)

    names = ('a', 'b', 'c')
    coco = [(tmp_path / name / 'annotations' / 'instances_training.json').read_text() for name in names]
    assert coco[0] == coco[1] != coco[2]

    make_dataset(tmp_path / 'a', 1)  # its own folder may be made again
    assert (tmp_path / 'a' / files[0]).read_bytes() == (tmp_path / 'c' / files[0]).read_bytes()
    theirs = tmp_path / 'theirs'
    theirs.mkdir()
    (theirs / 'thesis.txt').write_text('mine')
    assert 'nothing was changed' in run('make_demo_dataset.py', '--out', theirs, status=2)
    assert [p.name for p in theirs.iterdir()] == ['thesis.txt']


def test_demo_dataset_for_detection(tmp_path, monkeypatch):
    """Boxes, masks and panoptic segments say what the label maps say, in the words of COCO and of mmdet."""
    pytest.importorskip('mmdet.datasets')
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_demo_dataset
    from mmdet.registry import DATASETS
    from mmengine import DefaultScope
    from pycocotools.coco import COCO

    monkeypatch.setattr(make_demo_dataset, 'SPLITS', dict(training=6, validation=2))
    make_demo_dataset.make_dataset(tmp_path)
    coco = COCO(str(tmp_path / 'annotations' / 'instances_training.json'))
    drawn = {i: np.zeros((128, 128), int) for i in coco.imgs}
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.sum() == annotation['area'] and not drawn[annotation['image_id']][mask].any()
        left, top, width, height = annotation['bbox']
        inside = mask[top : top + height, left : left + width]
        assert inside.sum() == mask.sum()
        assert inside[[0, -1]].any(1).all() and inside[:, [0, -1]].any(0).all()  # the box is tight
        drawn[annotation['image_id']][mask] = annotation['category_id']
    for i, labels in drawn.items():
        stored = cv2.imread(str(tmp_path / 'annotations/training' / coco.imgs[i]['file_name']), cv2.IMREAD_UNCHANGED)
        assert (stored == labels).all()

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='CocoPanopticDataset',
                metainfo=dict(
                    classes=('disc', 'box', 'star', 'stripe', 'background'),
                    thing_classes=('disc', 'box', 'star', 'stripe'),
                    stuff_classes=('background',),
                ),
                data_root=str(tmp_path),
                ann_file='annotations/panoptic_training.json',
                data_prefix=dict(img='images/training/', seg='panoptic/training/'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='sapa_mm.LoadPanopticSegments')],
            )
        )
    assert len(dataset) == 6
    for item in dataset:
        labels = drawn[item['img_id']]
        assert (item['gt_seg_map'] == np.where(labels, labels - 1, 4)).all()
        assert len(item['gt_masks']) == len(item['gt_bboxes']) == len(item['gt_bboxes_labels']) >= 3
        for mask, label in zip(item['gt_masks'].masks, item['gt_bboxes_labels']):
            assert (labels[mask.astype(bool)] == label + 1).all()


def test_sunrgbd_converter(tmp_path):
    """Labels of the test images come first; each gets its image's name, and the data set finds the pairs."""
    from mmengine.registry import DATASETS

    for folder, suffix, count in (('train', 'jpg', 3), ('test', 'jpg', 2), ('labels', 'png', 5)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            value = 37 - i if folder == 'labels' else 0
            picture = np.full((4, 6) if suffix == 'png' else (4, 6, 3), value, np.uint8)
            cv2.imwrite(str(tmp_path / folder / f'img-{i + 1:06d}.{suffix}'), picture)
    folders = [tmp_path / name for name in ('train', 'test', 'labels')]
    run('dataset_converters/sunrgbd.py', *folders, tmp_path / 'out')
    for split, first, count in (('test', 37, 2), ('train', 35, 3)):
        dataset = DATASETS.build(
            dict(
                type='sapa_mm.SUNRGBDDataset',
                data_root=str(tmp_path / 'out'),
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                pipeline=[
                    dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations', reduce_zero_label=True)
                ],
            )
        )  # fmt: skip
        assert len(dataset) == count and len(dataset.metainfo['classes']) == 37
        assert [np.unique(item['gt_seg_map']).tolist() for item in dataset] == [[first - 1 - i] for i in range(count)]
    (tmp_path / 'labels' / 'img-000005.png').unlink()
    assert '4 labels do not fit 2 test and 3 training images' in run(
        'dataset_converters/sunrgbd.py', *folders, tmp_path / 'other', status=1
    )


STUDY = """
config = 'config.py'
baseline = 'bilinear'
upsamplers = {'bilinear': dict(type='sapa_mm.Bilinear'), 'SAPA-B': dict(type='sapa_mm.SAPA', embed_dims=4)}
seeds = [3, 5]
metrics = ['mIoU', '2px/bIoU']
options = {
    'train_cfg.max_iters': 8, 'train_cfg.val_interval': 4, 'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.save_best': 'mIoU', 'default_hooks.logger.interval': 1,
    'default_hooks.logger.log_metric_by_epoch': False,
    'test_evaluator': [
        dict(type='sapa_mm.ClassIoU'), dict(type='sapa_mm.BoundaryIoU', width=2, per_class=True, prefix='2px')]}
"""


def test_compare_goes_on_after_kills(config, tmp_path):
    """A study that is killed twice gives the same figures as one that is left alone; no finished run is run again."""
    pytest.importorskip('scipy')
    shutil.copy(config, tmp_path / 'config.py')
    study = tmp_path / 'study.py'
    study.write_text(STUDY)
    names = [f'{name}_s{seed}' for seed in (3, 5) for name in ('bilinear', 'SAPA-B')]
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'

    def checkpoint(number):
        return list((killed / names[number].replace('_', '/')).glob('iter_*.pth'))

    for reached in (lambda: checkpoint(0), lambda: checkpoint(1) and (killed / 'runs' / f'{names[0]}.json').exists()):
        process = start('compare.py', study, '--work-dir', killed)
        wait_until(reached, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    first = (killed / 'runs' / f'{names[0]}.json').stat().st_mtime_ns
    run('compare.py', study, '--work-dir', killed, '--jobs', 2)
    out = run('compare.py', study, '--work-dir', whole, '--jobs', 2)
    assert (killed / 'runs' / f'{names[0]}.json').stat().st_mtime_ns == first

    def figures(folder, name):
        found = json.loads((folder / 'runs' / f'{name}.json').read_text())
        tests = {test: {k: v for k, v in x.items() if 'time' not in k} for test, x in found['tests'].items()}
        validation = {step: entry['mIoU'] for step, entry in found['validation'].items()}
        return tests, validation, found['loss'], found['parameters'], found['macs']

    for name in names:
        tests, validation, loss, parameters, macs = figures(whole, name)
        assert (tests, validation, loss, parameters, macs) == figures(killed, name)
        assert tests['last']['checkpoint'] == 'iter_8.pth' and tests['best']['checkpoint'].startswith('best_mIoU')
        assert list(loss) == [str(step) for step in range(1, 9)] and list(validation) == ['4', '8']
        assert {'mIoU', 'IoU.a', '2px/bIoU', '2px/bIoU.c'} <= tests['last'].keys()
        assert parameters > 0 and macs > 0
    assert figures(whole, names[0]) != figures(whole, names[2])  # another seed

    # the table, by hand
    accuracy = (whole / 'report.md').read_text().partition('## Cost')[0]
    assert accuracy == (killed / 'report.md').read_text().partition('## Cost')[0]
    last = {name: figures(whole, name)[0]['last']['mIoU'] for name in names}
    a, b = (last[f'SAPA-B_s{seed}'] - last[f'bilinear_s{seed}'] for seed in (3, 5))
    half = 12.7062 * abs(a - b) / 2  # Student's t of one degree of freedom
    assert f'{(a + b) / 2:+.2f} [{(a + b) / 2 - half:+.2f}, {(a + b) / 2 + half:+.2f}]' in accuracy
    assert '4 of 4 runs are finished. Of an upsampler with fewer than 3 seeds nothing can be concluded.' in out.replace(
        '\n', ' '
    )
    report = (whole / 'report.html').read_text()
    assert report.count('data:image/png;base64,') == 1 and 'src="http' not in report

    study.write_text(STUDY.replace("'train_cfg.max_iters': 8", "'train_cfg.max_iters': 10"))
    assert 'is of another config or other options' in run('compare.py', study, '--work-dir', whole, status=2)


def test_compare_single_seeds_and_fractions(config, tmp_path, monkeypatch):
    """--seeds runs what it names and nothing else; fractions become percent in the tables, not in the files."""
    shutil.copy(config, tmp_path / 'config.py')
    study = tmp_path / 'study.py'
    study.write_text(STUDY + "percent = ['mIoU']\n")
    monkeypatch.syspath_prepend(str(TOOLS))
    compare = importlib.import_module('compare')
    started = []
    monkeypatch.setattr(
        compare.subprocess, 'Popen', lambda command, **_: started.append(command[-1]) or SimpleNamespace(
            poll=lambda: 0, returncode=1, kill=lambda: None))  # fmt: skip
    for seeds in (['5'], ['4']):
        monkeypatch.setattr(
            sys, 'argv', ['compare.py', str(study), '--work-dir', str(tmp_path / 'out'), '--seeds', *seeds]
        )
        with pytest.raises(SystemExit):  # of runs that failed, and of a seed that is none of the study's
            compare.main()
    assert started == ['bilinear/s5', 'SAPA-B/s5']

    result = dict(
        upsampler='bilinear', seed=3, tests=dict(last=dict(mIoU=0.25, other=0.5)), validation={4: dict(mIoU=0.125)}
    )
    path = tmp_path / 'out' / 'runs' / 'bilinear_s3.json'
    path.write_text(json.dumps(result))
    (read,) = compare.read_results(tmp_path / 'out', compare.read_study(study))
    assert read['tests']['last'] == dict(mIoU=25, other=0.5) and read['validation'] == {'4': dict(mIoU=12.5)}
    assert json.loads(path.read_text())['tests'] == result['tests']


@pytest.mark.parametrize(
    'change, message',
    [
        (("baseline = 'bilinear'", "baseline = 'nearest'"), "the baseline 'nearest' is none of the upsamplers"),
        (('seeds = [3, 5]', 'seeds = []'), 'has no seeds'),
        (('seeds = [3, 5]', 'seeds = [3, 3]'), 'a seed is named twice'),
        (("config = 'config.py'", "config = 'config.py'; place = 'model.nek.x'"), 'has no model.nek'),
    ],
)
def test_compare_refuses(config, tmp_path, monkeypatch, capsys, change, message):
    shutil.copy(config, tmp_path / 'config.py')
    (tmp_path / 'study.py').write_text(STUDY.replace(*change))
    monkeypatch.syspath_prepend(str(TOOLS))
    compare = importlib.import_module('compare')
    with pytest.raises(SystemExit):
        study = compare.read_study(tmp_path / 'study.py')
        compare.config_text(tmp_path / 'study.py', study, 'bilinear', 3)
    assert message in capsys.readouterr().err


def test_dsb2018_converter(tmp_path):
    """Two pictures with two and three nuclei, one of the test split by its name; an empty mask is no nucleus."""
    coco = pytest.importorskip('pycocotools.coco')
    test_name = (
        json.loads((TOOLS / 'dataset_converters' / 'dsb2018_splits.json').read_text())['test'].split()[0] + 'f' * 58
    )
    source = tmp_path / 'stage1_train'
    masks = {}
    for name, count in (('f' * 64, 2), (test_name, 3)):
        picture = np.full((20, 30, 4), 90, np.uint8)
        for i in range(count + 1):
            mask = np.zeros((20, 30), np.uint8)
            if i < count:
                mask[3 * i : 3 * i + 4, 5 + i : 12 + 2 * i] = 255
                mask[3 * i, 5 + i] = 0  # no rectangle
                masks.setdefault(name, []).append(mask)
            (source / name / 'masks').mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(source / name / 'masks' / f'mask{i}.png'), mask)
        (source / name / 'images').mkdir()
        cv2.imwrite(str(source / name / 'images' / f'{name}.png'), picture)
    run('dataset_converters/dsb2018.py', source, tmp_path / 'out')
    for split, name in (('train', 'f' * 64), ('test', test_name)):
        found = coco.COCO(str(tmp_path / 'out' / 'annotations' / f'{split}.json'))
        (image,) = found.loadImgs(found.getImgIds())
        assert (image['file_name'], image['height'], image['width']) == (f'{name[:16]}.jpg', 20, 30)
        assert cv2.imread(str(tmp_path / 'out' / 'images' / split / image['file_name'])).shape == (20, 30, 3)
        annotations = found.loadAnns(found.getAnnIds())
        for annotation, mask in zip(annotations, masks[name], strict=True):
            assert np.array_equal(found.annToMask(annotation), mask > 0)
            y, x = np.nonzero(mask)
            left, top, width, height = annotation['bbox']
            assert (left, top, left + width - 1, top + height - 1) == (x.min(), y.min(), x.max(), y.max())
            assert annotation['area'] == (mask > 0).sum()
    assert not json.loads((tmp_path / 'out' / 'annotations' / 'val.json').read_text())['images']
    cv2.imwrite(str(source / test_name / 'masks' / 'mask0.png'), np.zeros((20, 31), np.uint8))
    assert 'has (20, 31) pixels, its picture (20, 30)' in run(
        'dataset_converters/dsb2018.py', source, tmp_path / 'other', status=1
    )


def test_demo(tmp_path):
    """All steps of the demo, with a training too short to learn anything."""
    arguments, settings = command(
        'demo.py', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=9',
        'default_hooks.logger.interval=2',
    )  # fmt: skip
    done = subprocess.run(arguments, cwd=tmp_path, timeout=300, **settings)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'untrained' in done.stdout and 'after 2 iterations' in done.stdout
    # the first line of training within a screen of its heading, and figures as in the log, which has all the rest
    lines = done.stdout.splitlines()
    heading, first = (next(i for i, line in enumerate(lines) if text in line) for text in (' Training ', '2/2  loss'))
    assert 0 < first - heading < 10 and len(lines) < 40, done.stdout
    (log,) = (tmp_path / 'work_dirs' / 'demo').glob('2*/*.log')
    log = log.read_text()
    assert 'Config:' in log and 'Hooks will be executed' in log and 'Iter(train)' in log
    trained = json.loads(next((tmp_path / 'work_dirs/demo/trained').glob('*/*.json')).read_text())['mIoU']
    assert f'{trained:.1f} ' in next(line for line in lines if 'after 2 iterations' in line)
    picture = cv2.imread(str(tmp_path / 'work_dirs' / 'demo' / 'demo.png'))
    assert picture.shape[0] > 300 and picture.std() > 20


@pytest.fixture
def tool(monkeypatch):
    """Import a tool and call its ``main`` with arguments; what it fails with is one line."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def call(name, *args):
        monkeypatch.setattr('sys.argv', [f'{name}.py', *map(str, args)])
        importlib.import_module(name).main()

    return call


def fails(tool, capsys, name, *args):
    with pytest.raises(SystemExit) as end:
        tool(name, *args)
    # The classic stack warns of every checkpoint of mmengine's before.
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('warning: the checkpoint')]
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith('error: '), lines
    return lines[0]


def test_draw_features(config, trained, tmp_path):
    """Every file is written, for models with and without kernels; of two with one name, both."""
    other = tmp_path / 'tiny.py'
    other.write_text(
        f"_base_ = '{config}'\n"
        "model = dict(decode_head=dict(upsample_cfg=dict(_delete_=True, type='sapa_mm.Bilinear')))\n"
    )
    picture, checkpoint = config.parent / 'data/images/0.png', trained / 'iter_40.pth'
    out = run(
        'draw_features.py', config, checkpoint, picture, '--compare', other, checkpoint, '--out', tmp_path / 'out',
        '--points', '10,20', '--neighbour', '0', '-1',
    )  # fmt: skip
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names == {
        'tiny_stages.png', 'tiny_2_stages.png', 'predictions.png', 'upsampled.png',
        *(f'tiny_kernels_{n}.png' for n in range(6)),
    }  # fmt: skip
    for name in names:
        assert str(tmp_path / 'out' / name) in out
        assert cv2.imread(str(tmp_path / 'out' / name)).std() > 10, name


def test_draw_features_refuses(config, trained, tmp_path, tool, capsys):
    picture, checkpoint = config.parent / 'data/images/0.png', trained / 'iter_40.pth'
    text = tmp_path / 'text.png'
    text.write_text('no picture')
    bare = ['--cfg-options', 'model.decode_head.upsample_cfg=None']
    draw = ['draw_features']
    assert 'there is no checkpoint' in fails(tool, capsys, *draw, config, tmp_path / 'x.pth', picture)
    assert 'there is no config file' in fails(tool, capsys, *draw, tmp_path / 'x.py', checkpoint, picture)
    assert 'there is no picture' in fails(tool, capsys, *draw, config, checkpoint, tmp_path / 'x.png')
    assert 'cannot be read as a picture' in fails(tool, capsys, *draw, config, checkpoint, text)
    assert 'no upsampler to look into' in fails(tool, capsys, *draw, config, checkpoint, picture, *bare)
    message = fails(tool, capsys, *draw, config, checkpoint, picture, '--points', '48,0')
    assert 'the point 48,0 lies outside the picture of 48 x 48 pixels' in message
    with pytest.raises(SystemExit):
        tool(*draw, config, checkpoint, picture, '--compare', config)
    assert 'takes a checkpoint for each config' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool(*draw, config, checkpoint, picture, '--points', '4')
    assert 'a point is Y,X in pixels' in capsys.readouterr().err


def test_draw_features_hook(config, tmp_path):
    """During training, at each validation, through the Visualizer."""
    with_hook = tmp_path / 'hook.py'
    with_hook.write_text(f"_base_ = '{config}'\ncustom_hooks = [dict(type='sapa_mm.DrawFeaturesHook')]\n")
    run(
        'train.py', with_hook, '--work-dir', tmp_path / 'work',
        '--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=2',
    )  # fmt: skip
    written = {path.name: path for path in tmp_path.rglob('vis_image/*.png')}
    assert set(written) == {f'{kind}_{step}.png' for kind in ('features', 'kernels') for step in (2, 4)}
    assert all(cv2.imread(str(path)).std() > 10 for path in written.values())
    out = run(
        'train.py', with_hook, '--work-dir', tmp_path / 'bare',
        '--cfg-options', 'model.decode_head.upsample_cfg=None', status=1,
    )  # fmt: skip
    assert 'the model has no upsampler to look into' in out and 'Iter(train)' not in out


@pytest.fixture
def ablate(tool):
    return importlib.import_module('ablate')


def test_ablate_has_the_paper_s_cells(ablate):
    """Table 4, in its order: normalisations with G, kernel size and width with B, 12 runs for 15 cells."""
    assert [(cell.setting, cell.paper) for cell in ablate.CELLS] == [
        ('I', 43.1), ('B', 43.2), ('P', 43.2), ('G', 44.4),
        ('exp', 44.4), ('relu', 42.2), ('sigmoid', 43.5), ('softplus', 43.3),
        ('3', 43.1), ('5', 43.2), ('7', 42.5), ('16', 43.0), ('32', 43.4), ('64', 43.2), ('128', 43.4),
    ]  # fmt: skip
    options = [tuple(cell.options.values()) for cell in ablate.CELLS]
    fixed = ('softmax', 5, 64)
    assert options == [
        *((s, *fixed) for s in ('inner', 'bilinear', 'plain', 'gated')),
        *(('gated', n, 5, 64) for n in ('softmax', 'relu', 'sigmoid', 'softplus')),
        *(('bilinear', 'softmax', k, 64) for k in (3, 5, 7)),
        *(('bilinear', 'softmax', 5, d) for d in (16, 32, 64, 128)),
    ]
    runs = {cell.run for cell in ablate.CELLS}
    assert len(runs) == len(set(options)) == 12
    assert list(ablate.CELLS[0].options) == ['similarity', 'normalization', 'kernel_size', 'embed_dims']


def test_ablate_goes_on_where_it_was(config, tmp_path, tool, ablate, monkeypatch, capsys):
    """Killed in its third run: the first two are kept, the third resumes, nothing runs twice."""
    calls = []

    def run_tool(lock, name, log, path, *args):
        assert '--resume' in args or name == 'test.py'
        calls.append((name, path.stem))
        folder = path.with_suffix('')
        if name == 'train.py':
            (folder / 'iter_4.pth').touch()
            (folder / 'last_checkpoint').write_text(str(folder / 'iter_4.pth'))
            if len(calls) == 5:
                raise KeyboardInterrupt
        else:
            assert args[0] == folder / 'iter_4.pth'
            (folder / 'test' / 'now').mkdir(parents=True)
            (folder / 'test' / 'now' / 'now.json').write_text(f'{{"mIoU": {len(calls)}.5}}')

    monkeypatch.setattr(ablate, 'run_tool', run_tool)
    arguments = ['ablate', config, '--work-dir', tmp_path / 'ablation']
    with pytest.raises(KeyboardInterrupt):
        tool(*arguments)
    tool(*arguments)
    runs = list(dict.fromkeys(cell.run for cell in ablate.CELLS))
    expected = [(name, run) for run in runs for name in ('train.py', 'test.py')]
    assert calls == [*expected[:5], *expected[4:]]
    printed = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in printed if line.startswith('| ')][1:]
    assert [row[1] for row in rows] == [cell.setting for cell in ablate.CELLS]
    assert [rows[i][2] for i in (0, 1, 2, 3, 4, 9, 13)] == ['2.50', '4.50', '7.50', '9.50', '9.50', '4.50', '4.50']
    before = len(calls)
    tool(*arguments)
    assert len(calls) == before and 'embedding width (B)' in capsys.readouterr().out

    from mmengine.config import Config

    written = Config.fromfile(tmp_path / 'ablation' / f'{runs[4]}.py')
    assert written.model.decode_head.upsample_cfg.to_dict() == {
        'type': 'sapa_mm.SAPA', 'similarity': 'gated', 'embed_dims': 64, 'kernel_size': 5, 'normalization': 'relu',
    }  # fmt: skip


def test_ablate_refuses(config, tmp_path, tool, ablate, monkeypatch, capsys):
    folder = tmp_path / 'ablation'
    arguments = ['ablate', config, '--work-dir', folder, '--dry-run']
    bare = ['--cfg-options', 'model.decode_head.upsample_cfg=None']
    assert 'has no upsample_cfg' in fails(tool, capsys, *arguments, *bare)
    assert 'there is no config file' in fails(tool, capsys, 'ablate', tmp_path / 'x.py')
    data = ['--cfg-options', 'train_dataloader.dataset.data_root=/no/such/place']
    assert '/no/such/place' in fails(tool, capsys, *arguments, *data)
    assert not folder.exists()
    tool(*arguments)
    other = ['--cfg-options', 'train_cfg.max_iters=3']
    assert 'is of another config or other options' in fails(tool, capsys, *arguments, *other)
    with (folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert 'is in use' in fails(tool, capsys, *arguments)
    (folder / 'broken').mkdir()
    monkeypatch.setattr(ablate, 'CELLS', ablate.CELLS[:1])
    broken_options = ['--cfg-options', 'model.decode_head.num_classes=None']
    message = fails(tool, capsys, 'ablate', config, '--work-dir', folder / 'broken', *broken_options)
    assert 'train.py ended with status 1' in message and 'train.log' in message


def test_ablate_trains_and_tests(config, tmp_path, tool, ablate, monkeypatch, capsys):
    """One run of the real tools, for the two cells that share it."""
    monkeypatch.setattr(ablate, 'CELLS', [cell for cell in ablate.CELLS if cell.run == ablate.CELLS[3].run])
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    tool('ablate', config, '--work-dir', tmp_path / 'ablation', '--cfg-options', 'train_cfg.max_iters=4')
    (result,) = tmp_path.rglob('result.json')
    result = json.loads(result.read_text())
    assert result['checkpoint'] == 'iter_4.pth' and 0 < result['mIoU'] < 100
    printed = capsys.readouterr().out
    assert printed.count(f'{result["mIoU"]:.2f} |') == 2
