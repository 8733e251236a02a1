# SPDX-License-Identifier: Apache-2.0
"""Study of known signals: the measure by hand, the data, and one run of a study."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip('cv2')
pytest.importorskip('mmengine')
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import _known_signals as known  # noqa: E402
from tool_helpers import run  # noqa: E402

NEAREST = dict(type='sapa_mm.Nearest')
SAPA = dict(type='sapa_mm.SAPA', similarity='bilinear', embed_dims=4)


def halves(height=16, width=16, column=8):
    """Label 0 on the left, 1 from ``column`` on."""
    labels = np.zeros((height, width), np.int64)
    labels[:, column:] = 1
    return labels


def test_regions():
    near = known.near_boundary(halves(), 2)
    assert near[0].tolist() == [False] * 6 + [True] * 4 + [False] * 6 and (near == near[0]).all()
    smooth, detail = known.window_kinds(halves(24, 32, 16))
    # windows of 5 cells: those of cells 6 to 9 reach across column 16; two cells at each border are not counted
    assert smooth[12].tolist() == [False] * 4 + [True] * 8 + [False] * 8 + [True] * 8 + [False] * 4
    assert detail[12].tolist() == [False] * 12 + [True] * 8 + [False] * 12
    assert not (smooth | detail)[:4].any()


def test_entropy_and_own_share():
    average = torch.full((1, 25, 4, 6), 1 / 25)
    centre = torch.zeros(1, 25, 4, 6)
    centre[:, 12] = 1
    torch.testing.assert_close(known.entropy(average), torch.ones(4, 6))
    assert known.entropy(centre).eq(0).all()
    groups = torch.stack([centre, average], 1)
    torch.testing.assert_close(known.entropy(groups), torch.full((4, 6), 0.5))
    labels = torch.from_numpy(halves(4, 6, 3))[None]  # the boundary goes through the middle of a cell
    share = known.own_share(centre, labels, 2)
    assert share[0].tolist() == [1, 1, 0.5, 0.5, 1, 1]


def test_errors_by_hand():
    labels = torch.from_numpy(halves())[None]
    scores = torch.nn.functional.one_hot(labels[0], 2).permute(2, 0, 1).float()
    scores[:, 0, 8] = torch.tensor([1.0, 0.0])  # one wrong position beside the boundary
    scores[1, 5, 0] = 0.5  # right, but less sure
    metric = known.KnownSignalErrors(scored=2)
    metric.dataset_meta = dict(num_classes=2)
    for split in ('test', 'train'):
        metric.process(dict(labels=labels, split=[split], name=['p']), [dict(scores=scores, last=None)])
        scores = torch.zeros_like(scores)  # of ties the first label wins
    figures = metric.compute_metrics(metric.results)
    assert figures['error.1px'] == pytest.approx(100 / 32) and figures['error.3px'] == pytest.approx(100 / 96)
    assert figures['error.inside'] == 0 and figures['square.inside'] == pytest.approx(100 * 0.25 / (6 * 16))
    assert figures['train error.all'] == 50 and figures['picture/p'] == figures['error.3px']
    metric = known.KnownSignalErrors(scored=1)  # the right half is not scored
    metric.dataset_meta = dict(num_classes=2)
    metric.process(dict(labels=labels, split=['test'], name=['p']), [dict(scores=1 - scores, last=None)])
    assert metric.compute_metrics(metric.results)['error.all'] == 0


def test_model_gives_back_what_is_constant_and_shares_its_encoder():
    images = torch.rand(2, 3, 32, 32) - 0.5
    labels = torch.ones(2, 32, 32, dtype=torch.int64)
    models = {}
    for name, cfg in dict(nearest=NEAREST, sapa=SAPA, colour=dict(type='sapa_mm.ColourStep')).items():
        torch.manual_seed(5)
        models[name] = known.KnownSignalModel(3, 8, cfg)
        assert len(models[name].upsamplers) == 3
    assert models['nearest'](images, labels)['loss'] < 1e-10
    weights = [model.encoder.state_dict() for model in models.values()]
    assert all(torch.equal(weights[0][key], other[key]) for other in weights[1:] for key in weights[0])
    # averaged over 8 x 8 positions, alternating columns are nothing but their mean
    labels[:, :, ::2] = 0
    assert models['nearest'](images, labels)['loss'].item() == pytest.approx(0.5)
    told = known.KnownSignalModel(3, 8, NEAREST, true_guide=True)
    _, _, (_, feature, guide) = told.steps(images, labels)
    assert feature.shape[2:] == (16, 16) and torch.equal(guide, told.embedding[labels].permute(0, 3, 1, 2))
    loss = models['sapa'](images, labels)['loss']
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in models['sapa'].encoder.parameters() if p.dim() > 1)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (('train', 3), ('val', 1), ('test', 2)):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for n in range(count):
            labels = halves(34, 40, int(rng.integers(10, 30))).astype(np.uint8)
            labels[:3] = 255
            image = labels[..., None].clip(0, 1) * np.uint8([200, 100, 50])
            cv2.imwrite(str(tmp_path / 'images' / split / f'{n}.png'), image)
            cv2.imwrite(str(tmp_path / 'annotations' / split / f'{n}.png'), labels)
    return tmp_path


def test_data(data):
    whole = known.KnownSignals(data, dict(test=1, train=2), 3)
    assert [whole[i]['split'] for i in range(len(whole))] == ['test', 'test', 'train', 'train']
    sample = whole[0]
    assert sample['inputs'].shape == (3, 32, 40) and sample['labels'].shape == (32, 40)
    assert sample['labels'][:2].eq(2).all() and sample['labels'][2:].lt(2).all()  # one of two rows was cut off
    # RGB: the red of label 1 is the last channel of what cv2 wrote
    assert sample['inputs'][:, 20, 39].tolist() == pytest.approx([50 / 127.5 - 1, 100 / 127.5 - 1, 200 / 127.5 - 1])
    np.random.seed(0)
    crops = known.KnownSignals(data, dict(train=1), 3, crop=16)
    assert crops[0]['labels'].shape == (16, 16)
    assert any(not torch.equal(crops[0]['labels'], crops[0]['labels']) for _ in range(5))


def test_instances_become_labels(tmp_path):
    mask = pytest.importorskip('pycocotools.mask')
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images' / 'val').mkdir(parents=True)
    nuclei = np.zeros((16, 16, 2), np.uint8, order='F')
    nuclei[2:5, 2:5, 0] = nuclei[4:9, 4:9, 1] = 1
    codes = [dict(code, counts=code['counts'].decode()) for code in mask.encode(nuclei)]
    content = dict(
        images=[dict(id=7, file_name='a.png'), dict(id=8, file_name='b.png')],
        annotations=[dict(image_id=7, segmentation=code) for code in codes],
    )
    (tmp_path / 'annotations' / 'val.json').write_text(json.dumps(content))
    for name in 'ab':
        cv2.imwrite(str(tmp_path / 'images' / 'val' / f'{name}.png'), np.zeros((16, 16, 3), np.uint8))
    first, second = known.KnownSignals(tmp_path, dict(val=1), 2)
    assert torch.equal(first['labels'], torch.from_numpy(nuclei.max(2)).long()) and second['labels'].sum() == 0


def test_a_study_runs(data, tmp_path):
    """compare.py with the study's own model: trained SAPA beats its start, and all figures are there."""
    studies = ROOT / 'docs' / 'results' / 'studies'
    loaders = {
        f'{name}_dataloader.dataset.{key}': value
        for name in ('train', 'val', 'test')
        for key, value in dict(data_root=str(data), num_classes=3).items()
    }
    options = {
        **loaders, 'model.num_classes': 3, 'val_evaluator.scored': 2, 'test_evaluator.scored': 2,
        'train_dataloader.dataset.crop': 32, 'train_dataloader.batch_size': 2,
        'val_dataloader.dataset.splits': {'val': 1},
        'test_dataloader.dataset.splits': {'test': 1, 'train': 1},
        'train_cfg.max_iters': 30, 'train_cfg.val_interval': 30, 'param_scheduler.1.end': 30,
        'default_hooks.logger.interval': 1,
    }  # fmt: skip
    study = tmp_path / 'study.py'
    study.write_text(
        f'config = {str(studies / "known_signals_model.py")!r}\nplace = "model.upsample_cfg"\nbaseline = "SAPA"\n'
        f'upsamplers = dict(SAPA={SAPA!r})\nseeds = [1]\nmetrics = ["error.3px"]\noptions = {options!r}\n'
    )
    run('compare.py', study, '--work-dir', tmp_path / 'out')
    result = json.loads((tmp_path / 'out' / 'runs' / 'SAPA_s1.json').read_text())
    figures = result['tests']['last']
    losses = list(result['loss'].values())
    assert len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert {'error.1px', 'train error.inside', 'entropy smooth.50', 'entropy detail.mean', 'own label.kernel'} <= {
        *figures
    }
    assert 0 <= figures['entropy detail.05'] <= figures['entropy detail.95'] <= 1
    assert figures['own label.average'] < 100 and '| 3px |' in (tmp_path / 'out' / 'report.md').read_text()
