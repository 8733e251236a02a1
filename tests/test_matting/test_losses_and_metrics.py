# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from sapa_mm.matting import MattingLoss, MattingMetric, matting_errors


def maps(height=5, width=6, batch=2):
    generator = torch.Generator().manual_seed(0)

    def draw(channels):
        return torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64)

    return dict(
        pred=1.4 * draw(1) - 0.2, alpha=draw(1), unknown=(draw(1) < 0.6).double(), foreground=draw(3),
        background=draw(3), image=draw(3),
    )  # fmt: skip


@pytest.mark.parametrize('weights', [(0.5, 0.5), (1.0, 0.25)])
def test_loss_by_plain_loops(weights):
    x = maps()
    total = 0.0
    for n in range(2):
        of_alpha = of_colour = 0.0
        count = int(x['unknown'][n].sum())
        for i in range(5):
            for j in range(6):
                known = float(x['unknown'][n, 0, i, j])
                a, truth = float(x['pred'][n, 0, i, j]), float(x['alpha'][n, 0, i, j])
                of_alpha += math.sqrt(((a - truth) * known) ** 2 + 1e-12)
                for c in range(3):
                    colour = a * float(x['foreground'][n, c, i, j]) + (1 - a) * float(x['background'][n, c, i, j])
                    of_colour += math.sqrt(((colour - float(x['image'][n, c, i, j])) * known) ** 2 + 1e-12)
        total += (weights[0] * of_alpha + weights[1] * of_colour) / (count + 1) / 2
    assert float(MattingLoss(*weights)(**x)) == pytest.approx(total, rel=1e-12)


def test_loss_without_an_unknown_pixel_is_finite():
    x = maps()
    x['unknown'].zero_()
    x['pred'].requires_grad_()
    loss = MattingLoss()(**x)
    loss.backward()
    assert float(loss) == pytest.approx(0.5 * 30 * 4 * 1e-6)
    assert not x['pred'].grad.any()


def test_loss_of_wrong_shapes():
    x = maps()
    x['foreground'] = x['foreground'][:, :1]
    with pytest.raises(ValueError, match=r'foreground must have shape \(2, 3, 5, 6\) .* got \(2, 1, 5, 6\)'):
        MattingLoss()(**x)


def example(seed=0, height=9, width=11):
    rng = np.random.default_rng(seed)
    alpha = rng.choice(np.array([0, 51, 102, 153, 204, 255], np.uint8), (height, width))
    pred = rng.choice(np.array([0, 60, 153, 230, 255], np.uint8), (height, width))
    trimap = rng.choice(np.array([0, 128, 128, 255], np.uint8), (height, width))
    return np.where(trimap == 128, pred, trimap), alpha, trimap


def largest_component(mask):
    """The first of the largest 4-connected components, by flooding."""
    best, seen = set(), set()
    for start in zip(*np.nonzero(mask)):
        if start in seen:
            continue
        found, todo = {start}, [start]
        while todo:
            i, j = todo.pop()
            for place in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                inside = 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]
                if inside and mask[place] and place not in found:
                    found.add(place)
                    todo.append(place)
        seen |= found
        if len(found) > len(best):
            best = found
    return best


def brute_force(pred, alpha, trimap):
    """The errors of the MATLAB scripts, pixel by pixel."""
    unknown = [(int(i), int(j)) for i, j in zip(*np.nonzero(trimap == 128))]
    difference = {place: (float(pred[place]) - float(alpha[place])) / 255 for place in unknown}

    def magnitude(x):
        x = (x - x.min()) / (x.max() - x.min())
        half = math.ceil(1.4 * math.sqrt(-2 * math.log(0.01 * math.sqrt(2 * math.pi) * 1.4)))
        taps = range(-half, half + 1)
        gaussian = {t: math.exp(-t * t / (2 * 1.4**2)) / (1.4 * math.sqrt(2 * math.pi)) for t in taps}
        kernel = {(r, c): gaussian[r] * -c * gaussian[c] / 1.4**2 for r in taps for c in taps}
        length = math.sqrt(sum(value**2 for value in kernel.values()))
        result = {}
        for i, j in unknown:
            along_x = along_y = 0.0
            for (r, c), value in kernel.items():
                for axis, (row, column) in enumerate(((i + r, j + c), (i + c, j + r))):
                    pixel = x[min(max(row, 0), x.shape[0] - 1), min(max(column, 0), x.shape[1] - 1)]
                    if axis == 0:
                        along_x += value / length * pixel
                    else:
                        along_y += value / length * pixel
            result[i, j] = math.hypot(along_x, along_y)
        return result

    first, second = magnitude(pred / 255), magnitude(alpha / 255)
    level = dict.fromkeys(unknown, 1.0)
    left = set(np.ndindex(pred.shape))
    for step in range(1, 11):
        both = np.minimum(pred, alpha).astype(int) * 10 >= 255 * step
        if not both.any():
            continue
        component = largest_component(both)
        for place in left - component:
            if place in level:
                level[place] = (step - 1) / 10
        left &= component

    def phi(x, place):
        distance = float(x[place]) / 255 - level[place]
        return 1 - (distance if distance >= 0.15 else 0)

    return dict(
        sad=sum(map(abs, difference.values())) / 1000,
        mse=sum(d * d for d in difference.values()) / len(unknown),
        grad=sum((first[p] - second[p]) ** 2 for p in unknown) / 1000,
        conn=sum(abs(phi(pred, p) - phi(alpha, p)) for p in unknown) / 1000,
    )


@pytest.mark.parametrize('seed', range(4))
def test_errors_by_brute_force(seed):
    pred, alpha, trimap = example(seed)
    wanted = brute_force(pred, alpha, trimap)
    found = matting_errors(pred, alpha, trimap)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
        assert value > 0


def test_definitions_differ_as_said():
    pred, alpha, trimap = example()
    errors = {name: matting_errors(pred, alpha, trimap, name) for name in ('matlab', 'mmagic', 'a2u')}
    whole = np.abs(pred.astype(float) - alpha).sum() / 255 / 1000
    assert errors['mmagic']['sad'] == pytest.approx(whole) and whole > errors['matlab']['sad']
    assert errors['mmagic']['grad'] == errors['matlab']['grad'] != errors['a2u']['grad']


@pytest.mark.parametrize('definition', ['matlab', 'mmagic', 'a2u'])
def test_special_mattes(definition):
    pred, alpha, trimap = example()
    assert set(matting_errors(alpha, alpha, trimap, definition).values()) == {0.0}
    known = np.where(trimap == 128, 0, trimap).astype(np.uint8)
    assert set(matting_errors(pred, alpha, known, definition).values()) == {0.0}
    # A constant matte has no range to stretch over.
    flat = np.full_like(alpha, 128)
    assert all(math.isfinite(x) for x in matting_errors(flat, alpha, np.full_like(alpha, 128), definition).values())


def test_bad_mattes():
    pred, alpha, trimap = example()
    with pytest.raises(TypeError, match='pred must have dtype uint8, got float64'):
        matting_errors(pred / 255, alpha, trimap)
    with pytest.raises(ValueError, match=r'alpha must have the shape .* of pred, \(9, 11\), got \(8, 11\)'):
        matting_errors(pred, alpha[1:], trimap)
    with pytest.raises(ValueError, match="definition must be one of .* got 'own'"):
        matting_errors(pred, alpha, trimap, 'own')
    with pytest.raises(ValueError, match="definition must be one of .* got 'own'"):
        MattingMetric('own')


def test_metric_is_the_mean_over_pictures():
    metric, wanted = MattingMetric(), []
    for seed in range(3):
        pred, alpha, trimap = example(seed, height=8 + seed)
        metric.process(None, [dict(pred_alpha=torch.from_numpy(pred), alpha=torch.from_numpy(alpha), trimap=trimap)])
        wanted.append(matting_errors(pred, alpha, trimap))
    found = metric.compute_metrics(metric.results)
    assert list(found) == ['SAD', 'MSE', 'Grad', 'Conn']
    for shown, name in zip(found, ('sad', 'mse', 'grad', 'conn')):
        assert found[shown] == pytest.approx(sum(x[name] for x in wanted) / 3, rel=1e-12)
    with pytest.raises(ValueError, match='no picture was evaluated'):
        metric.compute_metrics([])
