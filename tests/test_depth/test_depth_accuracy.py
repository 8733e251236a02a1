# SPDX-License-Identifier: Apache-2.0
"""The nine measures of depth against a computation pixel by pixel."""

import math

import cv2
import numpy as np
import pytest
import torch

from sapa_mm.depth import DepthAccuracy
from sapa_mm.depth.depth_accuracy import NAMES, depth_errors


def by_hand(depth, truth, low=1e-3, high=10.0, crop=None):
    top, bottom, left, right = crop or (0, truth.shape[0], 0, truth.shape[1])
    pairs = []
    for y in range(top, bottom):
        for x in range(left, right):
            d, t = float(depth[y, x]), float(truth[y, x])
            if low < t < high:
                d = low if math.isnan(d) else min(max(d, low), high)
                pairs.append((d, t))
    n = len(pairs)
    logs = [math.log(d) - math.log(t) for d, t in pairs]
    mean = math.fsum(logs) / n
    return dict(
        silog=100 * math.sqrt(math.fsum(e * e for e in logs) / n - mean**2),
        abs_rel=math.fsum(abs(d - t) / t for d, t in pairs) / n,
        log10=math.fsum(abs(math.log10(d) - math.log10(t)) for d, t in pairs) / n,
        rms=math.sqrt(math.fsum((d - t) ** 2 for d, t in pairs) / n),
        sq_rel=math.fsum((d - t) ** 2 / t for d, t in pairs) / n,
        log_rms=math.sqrt(math.fsum(e * e for e in logs) / n),
        **{f'd{k}': sum(max(d / t, t / d) < 1.25**k for d, t in pairs) / n for k in (1, 2, 3)},
    )


def maps(seed, size=(20, 30)):
    """Predictions out of bounds, infinite or NaN here and there, and truth that is unknown, too near or too far."""
    rng = np.random.default_rng(seed)
    depth, truth = rng.uniform(0.5, 9, size).astype(np.float32), rng.uniform(0.5, 9, size).astype(np.float32)
    depth.flat[:8] = [0, -1, 11, np.inf, -np.inf, np.nan, 1e-4, 10]
    truth.flat[8:13] = [0, 5e-4, 10, 12, 0]
    rng.shuffle(depth.reshape(-1))
    return depth, truth


def process(metric, *pairs):
    for depth, truth in pairs:
        data = dict(
            pred_depth_map=dict(data=torch.tensor(depth)[None]), gt_depth_map=dict(data=torch.tensor(truth)[None])
        )
        metric.process(None, [dict(data, img_path='../scene/rgb_1.jpg')])
    return metric.compute_metrics(metric.results)


@pytest.mark.parametrize('crop', [None, (3, 17, 5, 28)])
def test_against_every_pixel(crop):
    pairs = [maps(seed) for seed in range(3)]
    result = process(DepthAccuracy(crop=crop), *pairs)
    expected = [by_hand(*pair, crop=crop) for pair in pairs]
    assert tuple(result) == NAMES
    for name in NAMES:
        assert result[name] == pytest.approx(np.mean([e[name] for e in expected]), rel=1e-9), name


def test_other_bounds():
    depth, truth = maps(0)
    result = process(DepthAccuracy(min_depth=1.0, max_depth=5.0), (depth, truth))
    assert result == pytest.approx(by_hand(depth, truth, 1.0, 5.0), rel=1e-9)


def test_perfect():
    truth = maps(0)[1]
    assert process(DepthAccuracy(), (truth, truth)) == dict.fromkeys(NAMES[:6], 0.0) | dict.fromkeys(NAMES[6:], 1.0)


def test_eigen_crop():
    """Rows 45 to 470 and columns 41 to 600 of a frame of NYU, nothing else."""
    truth = np.full((480, 640), 2.0, np.float32)
    depth = np.full((480, 640), 9.0, np.float32)
    depth[45:471, 41:601] = 2.0
    assert process(DepthAccuracy(crop='eigen'), (depth, truth))['rms'] == 0
    for y, x in ((45, 41), (470, 600)):
        wrong = depth.copy()
        wrong[y, x] = 3.0
        assert process(DepthAccuracy(crop='eigen'), (wrong, truth))['rms'] > 0


def test_image_without_valid_pixels_does_not_count():
    depth, truth = maps(0)
    nothing = np.zeros_like(truth)
    assert process(DepthAccuracy(), (depth, truth), (depth, nothing)) == process(DepthAccuracy(), (depth, truth))
    assert all(math.isnan(x) for x in process(DepthAccuracy(), (depth, nothing)).values())


def test_predictions_are_written(tmp_path):
    depth, truth = maps(0)
    process(DepthAccuracy(output_dir=str(tmp_path)), (depth, truth))
    written = cv2.imread(str(tmp_path / 'scene' / 'rgb_1.png'), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16 and written.shape == truth.shape
    usual = np.isfinite(depth) & (depth > 0)
    assert np.abs(written[usual] / 1000 - depth[usual]).max() <= 0.0005001
    assert written[np.isnan(depth)] == 0 and written[depth == np.inf] == 65535


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(min_depth=0), 'bounds must be 0 < min_depth < max_depth, got 0 and 10.0'),
        (dict(max_depth=1e-4), 'bounds must be .* got 0.001 and 0.0001'),
        (dict(crop='nyu'), "crop must be 'eigen', None or .* got 'nyu'"),
        (dict(crop=(5, 5, 0, 9)), r'crop must be .* got \(5, 5, 0, 9\)'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DepthAccuracy(**options)


def test_maps_must_fit():
    depth, truth = maps(0)
    with pytest.raises(ValueError, match=r'one size, got \(19, 30\) and \(20, 30\)'):
        process(DepthAccuracy(), (depth[1:], truth))
    with pytest.raises(ValueError, match=r'crop \(45, 471, 41, 601\) reaches beyond a map of \(20, 30\)'):
        process(DepthAccuracy(crop='eigen'), (depth, truth))


def test_errors_take_integers():
    assert depth_errors(np.array([2, 4]), np.array([2, 4]))['d1'] == 1
