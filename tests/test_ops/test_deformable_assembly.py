# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from sampling import SamplingTests

from sapa_mm.ops import deformable_assembly, reference


class TestDeformableAssembly(SamplingTests):
    function = staticmethod(deformable_assembly)
    expected = staticmethod(reference.deformable_assembly)


def zeros(*shape, **kwargs):
    return torch.zeros(1, *shape, **kwargs)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (dict(kernels=zeros(5, 4, 4)), ValueError, 'kernels must have half the channels of offset, got 5 and 12'),
        (dict(kernels=zeros(6, 4, 5)), ValueError, 'kernels and offset must have the same height'),
        (dict(kernels=torch.zeros(2, 6, 4, 4)), ValueError, 'one batch size .* got 2 .* and 1'),
        (dict(kernels=zeros(6, 4, 4).int()), TypeError, 'kernels must be floating point, got torch.int32'),
        (dict(feature=zeros(3, 2, 2)), ValueError, 'groups must divide.*got 2 groups and 3 channels'),
        (dict(feature=zeros(4, 0, 2)), ValueError, 'feature is empty'),
    ],
)
def test_bad_input(change, error, match):
    arguments = dict(feature=zeros(4, 2, 2), kernels=zeros(6, 4, 4), offset=zeros(12, 4, 4), groups=2)
    with pytest.raises(error, match=match):
        deformable_assembly(**{**arguments, **change})
