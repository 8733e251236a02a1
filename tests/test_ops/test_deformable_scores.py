# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from helpers import needs_native
from sampling import SamplingTests, make_sampling_inputs

from sapa_mm.ops import deformable_scores, reference


class TestDeformableScores(SamplingTests):
    function = staticmethod(deformable_scores)
    expected = staticmethod(reference.deformable_scores)
    layout = torch.contiguous_format


@needs_native
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_deterministic_algorithms_refuse_the_atomic_sum():
    inputs = [
        x.requires_grad_() for x in make_sampling_inputs(deformable_scores, 1, 4, 3, (3, 4), (7, 8), device='cuda')
    ]
    torch.use_deterministic_algorithms(True)
    try:
        output = deformable_scores(*inputs)
        torch.autograd.grad(output.sum(), (inputs[0], inputs[2]), retain_graph=True)
        with pytest.raises(RuntimeError, match='deterministic'):
            torch.autograd.grad(output.sum(), inputs[1])
    finally:
        torch.use_deterministic_algorithms(False)


def zeros(*shape, **kwargs):
    return torch.zeros(1, *shape, **kwargs)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(groups=3), ValueError, 'groups must divide.*got 3 groups and 4 channels'),
        (dict(groups=2.0), TypeError, 'groups must be an int, got float'),
        (dict(groups=4), ValueError, r'offset must have 2 \* groups \* points channels, got 12 channels for 4 groups'),
        (dict(offset=zeros(0, 4, 4)), ValueError, 'offset must have .* got 0 channels'),
        (
            dict(offset=zeros(12, 4, 5)),
            ValueError,
            r'query and offset must have the same height.*\(4, 4\) and \(4, 5\)',
        ),
        (dict(offset=zeros(12, 4, 4).half()), TypeError, 'one dtype, got torch.float32 and torch.float16'),
        (dict(key=zeros(8, 2, 2)), ValueError, 'the same number of channels, got 4 and 8'),
        (dict(key=zeros(4, 0, 2)), ValueError, 'key is empty'),
        (dict(query=zeros(4, 4)), ValueError, 'query must have 4 dimensions'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(query=zeros(4, 4, 4), key=zeros(4, 2, 2), offset=zeros(12, 4, 4), groups=2)
    with pytest.raises(error, match=match):
        deformable_scores(**{**arguments, **change})
