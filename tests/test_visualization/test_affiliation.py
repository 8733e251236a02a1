# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

pytest.importorskip('matplotlib')

from sapa_mm.visualization import draw_affiliation


def picture(**changes):
    """Arguments for a 16x16 image, a 4x4 feature and kernels of size 3 at 8x8, uniform but for one position."""
    kernels = torch.full((9, 8, 8), 1 / 9)
    kernels[:, 2, 5] = 0
    kernels[7, 2, 5] = 1  # pixels (4..5, 10..11): everything from the cell below the centre
    arguments = dict(
        image=np.zeros((16, 16, 3), np.uint8), kernels=kernels, points=[(5, 10), (0, 0)], feature_size=(4, 4)
    )
    return {**arguments, **changes}


def cells(axes):
    """The share written into each cell, by its centre (y, x) in pixels."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}


def test_shares_stand_in_their_cells(tmp_path):
    figure = draw_affiliation(**picture(), truth=np.zeros((16, 16), int))
    upper, lower = (row.axes for row in figure.subfigs)
    assert [axes.get_title() for axes in upper] == ['image', 'truth']
    # Pixel (5, 10) is kernel position (2, 5) and lies in cell (1, 2), whose centre is (6, 10).
    shares = cells(lower[0])
    assert len(shares) == 9 and {centre for centre, share in shares.items() if share == '100'} == {(10, 10)}
    # At the corner five of nine cells lie outside the image and stay empty.
    assert set(cells(lower[1])) == {(2, 2), (2, 6), (6, 2), (6, 6)}
    figure.savefig(tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 1000


def test_maps_may_cover_more_than_the_picture():
    """Of 16 rows, padded to 20: pixel 14 is row 7 of a map of 10, and lies in cell 3 of a feature of 5."""
    kernels = torch.zeros(9, 10, 8)
    kernels[4, 7, 5] = 1
    arguments = picture(kernels=kernels, points=[(14, 10)], feature_size=(5, 4), extents=((20, 16), (20, 16)))
    shares = cells(draw_affiliation(**arguments).subfigs[1].axes[0])
    assert {centre for centre, share in shares.items() if share == '100'} == {(14, 10)}
    shares = cells(draw_affiliation(**{**arguments, 'extents': None}).subfigs[1].axes[0])
    assert '100' not in shares.values()  # row 8: the fault


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(kernels=torch.zeros(8, 4, 4)), 'odd K'),
        (dict(kernels=torch.zeros(4, 4, 4)), 'odd K'),
        (dict(kernels=torch.zeros(1, 9, 4, 4)), 'odd K'),
        (dict(points=[]), 'at least one'),
        (dict(points=[(16, 0)]), 'outside the image'),
        (dict(truth=np.zeros((8, 8), int)), 'truth must be'),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        draw_affiliation(**picture(**changes))
