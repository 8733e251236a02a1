# SPDX-License-Identifier: Apache-2.0
"""IoU of each class by its definition, beside the parent's means."""

import pytest
import torch

pytest.importorskip('mmseg')

from sapa_mm.evaluation import ClassIoU


def test_figures_of_each_class():
    generator = torch.Generator().manual_seed(0)
    metric = ClassIoU()
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'nowhere'))
    pairs = [torch.randint(0, 3, (2, 1, 9, 7), generator=generator) for _ in range(3)]
    for pred, truth in pairs:
        truth[0, 0] = 255
        metric.process({}, [dict(pred_sem_seg=dict(data=pred), gt_sem_seg=dict(data=truth))])
    found = metric.evaluate(3)
    preds, truths = (torch.stack(maps).flatten() for maps in zip(*pairs))
    preds, truths = preds[truths != 255], truths[truths != 255]
    expected = {}
    for c, name in enumerate('abc'):
        both, either = (preds == c) & (truths == c), (preds == c) | (truths == c)
        expected[f'IoU.{name}'] = 100 * both.sum().item() / either.sum().item()
    assert {key: x for key, x in found.items() if '.' in key} == pytest.approx(expected, abs=0.006)
    assert found['mIoU'] == pytest.approx(sum(expected.values()) / 3, abs=0.006)
