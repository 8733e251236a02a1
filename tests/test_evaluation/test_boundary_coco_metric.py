# SPDX-License-Identifier: Apache-2.0
"""Boundary AP of squares whose regions are counted by hand."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
from pycocotools import mask as rle

from sapa_mm.evaluation import BoundaryCocoMetric
from sapa_mm.evaluation.boundary_coco_metric import boundary_region

SIDE = 100


def square(top, left, side):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def annotation(number, mask, iscrowd=0):
    segmentation = rle.encode(np.asfortranarray(mask))
    segmentation['counts'] = segmentation['counts'].decode()
    return dict(
        id=number, image_id=1, category_id=1, segmentation=segmentation, area=int(mask.sum()), iscrowd=iscrowd,
        bbox=[float(x) for x in rle.toBbox(segmentation)],
    )  # fmt: skip


@pytest.fixture
def evaluate(tmp_path):
    def evaluate(truths, masks, **kwargs):
        path = tmp_path / 'truth.json'
        annotations = [annotation(i + 1, *truth) for i, truth in enumerate(truths)]
        image = dict(id=1, width=SIDE, height=SIDE, file_name='a.png')
        path.write_text(
            json.dumps(dict(images=[image], annotations=annotations, categories=[dict(id=1, name='thing')]))
        )
        metric = BoundaryCocoMetric(ann_file=str(path), prefix='boundary', **kwargs)
        metric.dataset_meta = dict(classes=('thing',))
        found = dict(
            bboxes=torch.zeros(len(masks), 4),
            scores=torch.linspace(0.5, 0.9, len(masks)),
            labels=torch.zeros(len(masks), dtype=torch.long),
            masks=torch.from_numpy(np.stack(masks)).bool(),
        )
        metric.process({}, [dict(img_id=1, ori_shape=(SIDE, SIDE), pred_instances=found)])
        return metric.evaluate(size=1)

    return evaluate


def test_metric_is_not_chosen():
    with pytest.raises(TypeError, match="metric is always 'segm' and cannot be given, got 'bbox'"):
        BoundaryCocoMetric(metric='bbox')


def test_region_by_definition():
    mask = (np.random.default_rng(0).random((23, 17)) < 0.9).astype(np.uint8)
    for radius in (1, 2, 5):
        padded = np.pad(mask, radius)
        expected = np.zeros_like(mask)
        for y, x in zip(*np.nonzero(mask)):
            expected[y, x] = not padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1].all()
        assert np.array_equal(boundary_region(mask, radius), expected)


def test_smaller_of_both(evaluate):
    """One column off: IoU 0.951. At width 1 the boundary IoU is 78 / 234, at 4 it is 504 / 648, at 40 the IoU."""
    truth, found = square(20, 20, 40), square(20, 21, 40)
    assert evaluate([(truth,)], [truth], width=1)['boundary/segm_mAP'] == pytest.approx(1)
    # of the ten thresholds from 0.5 on, none, those to 0.75, all
    for width, expected in ((1, 0), (4, 0.6), (40, 1)):
        assert evaluate([(truth,)], [found], width=width)['boundary/segm_mAP'] == pytest.approx(expected)


def test_matches_in_order_of_scores_and_ignores_crowds(evaluate):
    """The better mask has the better score but comes last; what lies in a crowd counts neither for nor against."""
    truth, crowd = square(10, 10, 30), square(50, 50, 50)
    masks = [square(60, 60, 20), square(10, 14, 30), truth]
    found = evaluate([(truth,), (crowd, 1)], masks, width=2)
    assert found['boundary/segm_mAP'] == pytest.approx(1)


def test_parent_is_left_as_it_was(evaluate):
    from mmdet.evaluation.metrics import coco_metric

    before = coco_metric.COCOeval
    evaluate([(square(0, 0, 9),)], [square(0, 0, 9)])
    assert coco_metric.COCOeval is before


@pytest.mark.parametrize(
    'options, message',
    [(dict(dilation_ratio=0), 'dilation_ratio must be positive, got 0'), (dict(width=1.5), 'width must be a positive')],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        BoundaryCocoMetric(**options)
