# SPDX-License-Identifier: Apache-2.0
"""AP at one threshold, of a box that overlaps its truth by 0.8."""

import json

import pytest
import torch

pytest.importorskip('mmdet')
from sapa_mm.evaluation import CocoMetricAt


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / 'truth.json'
    content = dict(
        images=[dict(id=1, width=40, height=40, file_name='a.png')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 20, 10], area=200, iscrowd=0)],
        categories=[dict(id=1, name='thing')],
    )
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize('thresholds, expected', [([0.9], 0), ([0.75], 1), ([0.75, 0.9], 0.5)])
def test_mean_over_thresholds(truth, thresholds, expected):
    metric = CocoMetricAt(thresholds, ann_file=str(truth), metric='bbox')
    metric.dataset_meta = dict(classes=('thing',))
    found = dict(bboxes=torch.tensor([[0.0, 0, 16, 10]]), scores=torch.tensor([0.9]), labels=torch.tensor([0]))
    metric.process({}, [dict(img_id=1, ori_shape=(40, 40), pred_instances=found)])
    assert metric.evaluate(size=1)['coco/bbox_mAP'] == pytest.approx(expected)


@pytest.mark.parametrize('thresholds', [[], [0.5, 1.5], [0]])
def test_thresholds_out_of_range(truth, thresholds):
    with pytest.raises(ValueError, match='iou_thrs must be thresholds between 0 and 1'):
        CocoMetricAt(thresholds, ann_file=str(truth))
