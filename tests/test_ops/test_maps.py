# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch
from helpers import random_maps
from torch._prims_common import suggest_memory_format

from sapa_mm.ops.maps import cell_of, memory_format, nearest


@pytest.mark.parametrize('size', [(3, 5), (6, 10), (12, 40), (9, 10), (9, 15), (7, 11), (2, 5), (1, 1)])
def test_nearest(size):
    (x,) = random_maps((1, 2, 3, 5))
    expected = [[x[:, :, i * 3 // size[0], j * 5 // size[1]] for j in range(size[1])] for i in range(size[0])]
    assert torch.equal(nearest(x, size), torch.stack([torch.stack(row, -1) for row in expected], -2))


def test_cells_are_exact():
    for size in range(1, 80):
        for cells in range(1, 40):
            expected = [math.floor(p * cells / size) for p in range(size)]  # exact: the products are small integers
            assert cell_of(size, cells).tolist() == expected


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 13),
    reason='the twin of torch 2.1 and 2.6 strays from their C++',
)
def test_memory_format_is_that_of_torch():
    found = set()
    for shape in itertools.product((0, 1, 3), repeat=4):
        for strides in itertools.product((0, 1, 3, 9, 27), repeat=4):
            x = torch.empty(82 * 3).as_strided(shape, strides)
            assert memory_format(x) == suggest_memory_format(x), (shape, strides)
            found.add(memory_format(x))
    assert found == {torch.contiguous_format, torch.channels_last}
    assert memory_format(torch.zeros(2, 3)) == torch.contiguous_format


@pytest.mark.parametrize('dim', [1, 2, 3])
def test_a_slice_has_the_format_of_its_map(dim):
    x = torch.zeros(2, 6, 8, 10)
    for wanted in (torch.contiguous_format, torch.channels_last):
        assert memory_format(x.contiguous(memory_format=wanted).narrow(dim, 1, 3)) == wanted
