# SPDX-License-Identifier: Apache-2.0
"""Boundary IoU against its definition, one pixel and one class at a time."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')
pytest.importorskip('cv2')

from mmengine.evaluator import Evaluator

from sapa_mm.evaluation.boundary_iou import BoundaryIoU, boundary_counts

CLASSES = ('sky', 'tree', 'road')


def region(mask, width):
    """Pixels of the mask with a pixel of no mask, or the outside, at most ``width`` rows and columns away."""
    height, length = mask.shape
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(length):
            if mask[y, x]:
                top, bottom, left, right = y - width, y + width + 1, x - width, x + width + 1
                outside = top < 0 or left < 0 or bottom > height or right > length
                result[y, x] = outside or not mask[top:bottom, left:right].all()
    return result


def brute_force(pred, truth, num_classes, ratio, ignore_index):
    width = max(1, int(round(ratio * math.sqrt(pred.shape[0] ** 2 + pred.shape[1] ** 2))))
    scored = truth != ignore_index
    intersection, union = [], []
    for c in range(num_classes):
        regions = [region((labels == c) & scored, width) for labels in (pred, truth)]
        intersection.append((regions[0] & regions[1]).sum())
        union.append((regions[0] | regions[1]).sum())
    return intersection, union


def random_case(seed):
    """Blocks of labels, a prediction that is wrong in places, some pixels ignored."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 33, 2)
    num_classes = int(rng.integers(1, 6))
    block = int(rng.integers(1, 9))
    blocks = rng.integers(0, num_classes, (-(-height // block), -(-width // block)))
    truth = np.kron(blocks, np.ones((block, block), int))[:height, :width]
    pred = np.where(rng.random(truth.shape) < rng.choice([0, 0.02, 0.3]), rng.integers(0, num_classes), truth)
    pred = np.roll(pred, rng.integers(-2, 3, 2), (0, 1))
    ignored = rng.random(truth.shape) < rng.choice([0, 0.05, 0.5, 1], p=[0.4, 0.3, 0.25, 0.05])
    ignore_index = int(rng.choice([255, 7]))
    return pred, np.where(ignored, ignore_index, truth), num_classes, float(rng.choice([0.01, 0.02, 0.1])), ignore_index


@pytest.mark.parametrize('seed', range(200))
def test_equals_the_definition(seed):
    pred, truth, num_classes, ratio, ignore_index = random_case(seed)
    intersection, union = boundary_counts(pred, truth, num_classes, ratio, ignore_index)
    expected = brute_force(pred, truth, num_classes, ratio, ignore_index)
    assert intersection.tolist() == expected[0] and union.tolist() == expected[1]


def test_the_cases_are_not_trivial():
    """Among them are regions that differ, pixels inside a class and ignored ones."""
    differ = inside = ignored = 0
    for seed in range(200):
        pred, truth, num_classes, ratio, ignore_index = random_case(seed)
        intersection, union = boundary_counts(pred, truth, num_classes, ratio, ignore_index)
        differ += 0 < intersection.sum() < union.sum()
        inside += union.sum() < (truth != ignore_index).sum()
        ignored += (truth == ignore_index).any()
    assert min(differ, inside, ignored) > 40


def sample(pred, truth):
    return {
        key: dict(data=torch.as_tensor(labels)[None]) for key, labels in (('pred_sem_seg', pred), ('gt_sem_seg', truth))
    }


def evaluate(metric, samples, classes=CLASSES):
    metric.dataset_meta = dict(classes=classes)
    for one in samples:
        metric.process(None, [one])
    return metric.evaluate(len(samples))


def test_sums_over_the_data_set():
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 3, (20, 24)), rng.integers(0, 3, (20, 24))) for _ in range(3)]
    counts = [brute_force(pred, truth, 3, 0.02, 255) for pred, truth in pairs]
    intersection, union = np.array(counts).sum(0)
    result = evaluate(BoundaryIoU(), [sample(*pair) for pair in pairs])
    assert result == dict(bIoU=pytest.approx(100 * (intersection / union).mean(), abs=0.005))


def test_perfect_whatever_is_predicted_where_the_truth_is_ignored():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (4, 4)), np.ones((16, 16), int))
    truth[20:40, 10:50] = 255
    pred = np.where(truth == 255, rng.integers(0, 3, truth.shape), truth)
    assert evaluate(BoundaryIoU(), [sample(pred, truth)]) == dict(bIoU=100.0)


def test_absent_classes_do_not_count():
    truth = np.zeros((16, 16), int)
    truth[:, 8:] = 1
    assert evaluate(BoundaryIoU(), [sample(truth, truth)]) == dict(bIoU=100.0)
    nothing = evaluate(BoundaryIoU(), [sample(truth, np.full_like(truth, 255))])
    assert math.isnan(nothing['bIoU'])


def test_a_shifted_edge_costs_more_than_iou_tells():
    truth = np.zeros((200, 200), int)
    truth[:, 100:] = 1
    pred = np.roll(truth, 4, 1)
    pred[:, :4] = 0
    narrow = evaluate(BoundaryIoU(), [sample(pred, truth)], CLASSES[:2])['bIoU']
    everything = evaluate(BoundaryIoU(dilation_ratio=1), [sample(pred, truth)], CLASSES[:2])['bIoU']
    iou = 100 * np.mean([100 / 104, 96 / 100])
    assert narrow < everything - 10 and everything == pytest.approx(iou, abs=0.01)


def test_more_classes_than_a_byte_holds():
    truth = np.arange(300).reshape(10, 30)
    intersection, union = boundary_counts(truth, truth, 300, ignore_index=65535)
    assert intersection.tolist() == union.tolist() == [1] * 300


def test_beside_miou():
    pytest.importorskip('mmseg')
    from mmengine.registry import DefaultScope
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    rng = np.random.default_rng(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        evaluator = Evaluator([dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='sapa_mm.BoundaryIoU')])
        evaluator.dataset_meta = dict(classes=CLASSES)
        evaluator.process([sample(rng.integers(0, 3, (32, 48)), rng.integers(0, 3, (32, 48)))])
        result = evaluator.evaluate(1)
    assert {'mIoU', 'aAcc', 'bIoU'} <= result.keys() and 0 < result['bIoU'] < 100


@pytest.mark.parametrize('ratio', [0, -0.1, float('nan')])
def test_refuses_the_ratio(ratio):
    with pytest.raises(ValueError, match='dilation_ratio must be positive'):
        BoundaryIoU(dilation_ratio=ratio)


def test_refuses_maps():
    truth = np.zeros((4, 4), int)
    with pytest.raises(ValueError, match=r'one size, got \(4, 5\) and \(4, 4\)'):
        boundary_counts(np.zeros((4, 5), int), truth, 3)
    with pytest.raises(ValueError, match=r'in \[0, 3\), the prediction has 3'):
        boundary_counts(truth + 3, truth, 3)
    with pytest.raises(ValueError, match=r'in \[0, 3\), the truth has -1'):
        boundary_counts(truth, truth - 1, 3)


def test_width_in_pixels_and_classes():
    """Any size of map has regions of the same width; a class that is nowhere has no figure."""
    truth = np.zeros((20, 30), int)
    truth[5:15, 5:20] = 1
    pred = np.roll(truth, 1, 1)
    metric = BoundaryIoU(width=2, per_class=True)
    metric.dataset_meta = dict(classes=CLASSES)
    sample = dict(
        pred_sem_seg=dict(data=torch.from_numpy(pred)[None]), gt_sem_seg=dict(data=torch.from_numpy(truth)[None])
    )
    metric.process(None, [sample])
    found = metric.evaluate(1)
    regions = [[region(labels == c, 2) for labels in (pred, truth)] for c in range(2)]
    expected = [100 * (a & b).sum() / (a | b).sum() for a, b in regions]
    assert found == pytest.approx(
        {'bIoU': np.mean(expected), 'bIoU.sky': expected[0], 'bIoU.tree': expected[1]}, abs=0.006
    )


@pytest.mark.parametrize('width', [0, -1, 1.5])
def test_width_must_be_a_positive_integer(width):
    with pytest.raises(ValueError, match='width must be a positive integer or None'):
        BoundaryIoU(width=width)
