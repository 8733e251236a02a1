# SPDX-License-Identifier: Apache-2.0
"""The pooled loss against its formula, pixel by pixel."""

import math

import pytest
import torch

from sapa_mm.depth import SILogLoss


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    depth, truth = (0.05 + 5 * torch.rand(3, 1, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    truth[torch.rand(truth.shape, generator=generator) < 0.3] = 0
    truth[0, 0, 0, :3] = torch.tensor([0.1, 0.0999, 0.1001])  # only the last one counts
    return depth.to(dtype), truth.to(dtype)


@pytest.mark.parametrize('options', [{}, dict(variance_focus=0.5), dict(min_depth=1.0, loss_weight=1.0)], ids=str)
def test_formula(options):
    depth, truth = batch()
    focus, least, weight = (
        dict(dict(variance_focus=0.85, min_depth=0.1, loss_weight=10.0), **options)[name]
        for name in ('variance_focus', 'min_depth', 'loss_weight')
    )
    errors = [
        math.log(d) - math.log(t) for d, t in zip(depth.flatten().tolist(), truth.flatten().tolist()) if t > least
    ]
    mean, square = math.fsum(errors) / len(errors), math.fsum(e * e for e in errors) / len(errors)
    expected = weight * math.sqrt(square - focus * mean**2)
    assert 20 < len(errors) < depth.numel() - 10
    assert float(SILogLoss(**options)(depth, truth)) == pytest.approx(expected, rel=1e-12)


def test_gradcheck():
    depth, truth = batch()
    assert torch.autograd.gradcheck(lambda x: SILogLoss()(x, truth), depth.requires_grad_())


def test_pooled_over_the_batch_and_not_the_mean_of_images():
    depth, truth = batch()
    loss = SILogLoss()
    images = torch.stack([loss(d, t) for d, t in zip(depth, truth)])
    assert abs(float(loss(depth, truth) - images.mean())) > 0.01


@pytest.mark.parametrize('focus', [0.85, 1.0])
def test_nothing_to_say(focus):
    """No valid pixel, no error, or with a focus of 1 only a common factor: 0, and gradients of 0 and not NaN."""
    depth, truth = batch(torch.float32)
    truth = truth.clamp_min(0.2)
    loss = SILogLoss(variance_focus=focus)
    cases = [(depth, torch.zeros_like(truth)), (truth.clone(), truth)]
    if focus == 1.0:
        cases.append((torch.full_like(truth, 3.0), torch.full_like(truth, 2.0)))
    for depth, truth in cases:
        depth = depth.clone().requires_grad_()
        value = loss(depth, truth)
        value.backward()
        assert abs(float(value)) < 1e-2 and depth.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    depth, truth = batch(torch.bfloat16)
    value = SILogLoss()(depth, truth)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, SILogLoss()(depth.float(), truth.float()))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(variance_focus=1.5), 'variance_focus must be between 0 and 1, got 1.5'),
        (dict(min_depth=-1), 'min_depth must be at least 0, got -1'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SILogLoss(**options)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r'one shape, got \(1, 1, 4, 4\) and \(1, 4, 4\)'):
        SILogLoss()(torch.ones(1, 1, 4, 4), torch.ones(1, 4, 4))
