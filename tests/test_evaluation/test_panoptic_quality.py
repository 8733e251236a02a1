# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality against its definition by sets of pixels, and the reading of panoptic pictures."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet.evaluation')
import cv2

from sapa_mm.datasets.panoptic import read_segment_ids, segment_ids
from sapa_mm.evaluation.panoptic_quality import PanopticQuality, count_matches

THINGS, STUFF = 3, 2
CLASSES = THINGS + STUFF


def pixels(x):
    return {value: set(np.flatnonzero(x.ravel() == value).tolist()) for value in np.unique(x).tolist()}


def by_sets(prediction, truth, segments):
    """The definition: sets of pixels, every pair looked at."""
    counted = np.zeros((CLASSES, 4))
    predicted = {p: s for p, s in pixels(prediction).items() if p % 1000 < CLASSES}
    true = {t: s for t, s in pixels(truth).items() if t in segments}
    void = set(range(truth.size)) - set().union(*true.values())
    plain = {t: s for t, s in true.items() if not segments[t][1]}
    matches = [
        (p, t, len(a & b) / len((a | b) - (a & void)))
        for p, a in predicted.items()
        for t, b in plain.items()
        if p % 1000 == segments[t][0] and len(a & b) / len((a | b) - (a & void)) > 0.5
    ]
    for p, _, iou in matches:
        counted[p % 1000] += iou, 1, 0, 0
    for t in plain:
        counted[segments[t][0], 3] += t not in [m[1] for m in matches]
    for p, a in predicted.items():
        crowds = set().union(*(s for t, s in true.items() if segments[t] == (p % 1000, True)))
        counted[p % 1000, 2] += p not in [m[0] for m in matches] and len(a & (void | crowds)) / len(a) <= 0.5
    return counted


def random_case(seed):
    """Truth in blocks; the prediction is the truth, shifted, with some classes wrong, void here and there."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(1, 8, (4, 5)), np.ones((4, 4), int))
    segments = {}
    for t in range(1, 7):  # 7 is void
        label = int(rng.integers(CLASSES))
        segments[t] = label, bool(label < THINGS and rng.random() < 0.25)
    label_of = {t: label if rng.random() < 0.8 else int(rng.integers(CLASSES)) for t, (label, _) in segments.items()}
    label_of[7] = int(rng.integers(CLASSES + 1))
    prediction = np.vectorize(lambda t: label_of[t] + 1000 * t if label_of[t] < CLASSES else CLASSES)(truth)
    return np.roll(prediction, rng.integers(0, 3, 2), (0, 1)), truth, segments


def test_equals_the_definition():
    total = np.zeros(4)
    for seed in range(200):
        prediction, truth, segments = random_case(seed)
        expected = by_sets(prediction, truth, segments)
        np.testing.assert_allclose(count_matches(prediction, truth, segments, CLASSES), expected, atol=1e-12)
        total += expected.sum(0)
    assert (total[1:] > 50).all()  # the cases have matches and mistakes of both kinds


def sample(prediction, path, segments):
    infos = [
        dict(id=t, category=label, is_thing=label < THINGS and not crowd) for t, (label, crowd) in segments.items()
    ]
    return dict(
        pred_panoptic_seg=dict(sem_seg=torch.from_numpy(prediction)[None]), seg_map_path=str(path), segments_info=infos
    )


def test_metric(tmp_path):
    """From files and samples to the means; classes that do not occur are left out."""
    metric = PanopticQuality()
    metric.dataset_meta = dict(classes=list('abcde'), thing_classes=list('abc'), stuff_classes=list('de'))
    counted = np.zeros((CLASSES, 4))
    for seed in range(3):
        prediction, truth, segments = random_case(seed)
        rgb = np.stack([truth, 0 * truth, 0 * truth], -1).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f'{seed}.png'), rgb[..., ::-1])
        metric.process({}, [sample(prediction, tmp_path / f'{seed}.png', segments)])
        counted += by_sets(prediction, truth, segments)
    result = metric.evaluate(3)
    iou, tp, fp, fn = counted.T
    assert (tp + fp + fn > 0).all()
    quality = 100 * iou / (tp + fp / 2 + fn / 2)
    assert result['panoptic/PQ'] == pytest.approx(quality.mean())
    assert result['panoptic/PQ_th'] == pytest.approx(quality[:THINGS].mean())
    assert result['panoptic/PQ_st'] == pytest.approx(quality[THINGS:].mean())
    assert result['panoptic/RQ'] == pytest.approx((100 * tp / (tp + fp / 2 + fn / 2)).mean())


def test_perfect_prediction_and_absent_classes():
    truth = np.array([[1, 1], [2, 2]])
    counted = count_matches(np.array([[0, 0], [4, 4]]), truth, {1: (0, False), 2: (4, False)}, CLASSES)
    metric = PanopticQuality()
    metric.dataset_meta = dict(classes=list('abcde'), thing_classes=list('abc'))
    assert metric.compute_metrics([counted])['PQ'] == 100
    only_stuff = metric.compute_metrics([counted * (np.arange(5)[:, None] == 4)])
    assert only_stuff['PQ_st'] == 100 and np.isnan(only_stuff['PQ_th'])


def test_segment_ids(tmp_path):
    numbers = np.array([[0, 1, 255], [256, 65536, 256**3 - 1]])
    rgb = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    assert (segment_ids(rgb) == numbers).all()
    cv2.imwrite(str(tmp_path / 'x.png'), rgb[..., ::-1])
    assert (read_segment_ids(str(tmp_path / 'x.png')) == numbers).all()
