# SPDX-License-Identifier: Apache-2.0
"""What is recorded is what the upsamplers saw and gave, and the pictures show it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('matplotlib')
pytest.importorskip('cv2')

from sapa_mm import visualization
from sapa_mm.upsamplers import SAPA, Bilinear, DySample
from sapa_mm.visualization import choose_points, draw_row, draw_stages, draw_upsampled, record_upsamplers, rgb_of


class Model(nn.Module):
    """Three upsamplers, from 4x5 to 8x10 each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.sapa = SAPA(6, guide_channels=4, embed_dims=3, kernel_size=3)
        self.dysample = DySample(8)
        self.bilinear = Bilinear(6)

    def forward(self, feature, guide):
        wide = torch.cat([feature, feature[:, :2]], 1)
        return self.sapa(feature, guide), self.dysample(wide, guide), self.bilinear(feature, guide)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 6, 4, 5, generator=generator), torch.randn(2, 4, 8, 10, generator=generator)


@pytest.fixture
def recorded(inputs):
    model = Model().eval()
    with record_upsamplers(model) as recording:
        results = model(*inputs)
    return model, recording, results


def test_records_what_ran(inputs, recorded):
    model, recording, results = recorded
    assert [stage.name for stage in recording.stages] == ['sapa', 'dysample', 'bilinear']
    for stage, result in zip(recording.stages, results, strict=True):
        assert torch.equal(stage.result, result[0]) and torch.equal(stage.guide, inputs[1][0])
        assert torch.equal(stage.feature[:6], inputs[0][0])
        assert not stage.result.requires_grad and stage.of_picture
    sapa, dysample, bilinear = recording.stages
    torch.testing.assert_close(sapa.kernels, model.sapa.kernels(*inputs)[0].detach())
    assert dysample.kernels is None and bilinear.kernels is None
    assert torch.equal(sapa.bilinear, bilinear.result)
    model(*inputs)  # no longer watched
    assert len(recording.stages) == 3


def test_refuses_a_model_without_upsampler():
    with pytest.raises(ValueError, match='no upsampler to look into: its config sets no upsample_cfg'):
        with record_upsamplers(nn.Conv2d(1, 1, 1)):
            pass


def test_regions_are_no_picture(inputs):
    """Of a mask head, the first region; none where nothing was detected."""
    model = nn.Module()
    model.roi_head = Model().eval()
    with record_upsamplers(model) as recording:
        model.roi_head(inputs[0][:0], inputs[1][:0])
    assert recording.stages == []
    with record_upsamplers(model) as recording:
        model.roi_head(*inputs)
    assert len(recording.stages) == 3 and not any(stage.of_picture for stage in recording.stages)


@pytest.mark.parametrize('rgb', [True, False])
def test_picture_is_the_input_of_the_network(rgb):
    """Normalised and reordered by the preprocessor, and back: RGB from what cv2 loads."""
    from mmengine.model import ImgDataPreprocessor

    model = Model()
    model.data_preprocessor = ImgDataPreprocessor(
        mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], bgr_to_rgb=rgb, pad_size_divisor=8
    )
    bgr = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with record_upsamplers(model) as recording:
        model.data_preprocessor(dict(inputs=[bgr]))
    assert recording.picture.shape == (8, 8, 3)
    np.testing.assert_array_equal(recording.picture[:5, :7], bgr.flip(0).permute(1, 2, 0).numpy())


def panels(figure):
    """Pictures by row and title, without colour bars."""
    axes = [a for a in figure.axes if a.get_title() or a.texts]
    return {(i // 5, a.get_title()): np.asarray(a.images[0].get_array()) for i, a in enumerate(axes) if a.images}


def test_stages(recorded, tmp_path):
    _, recording, _ = recorded
    figure = draw_stages(recording.stages)
    drawn = panels(figure)
    assert {title for row, title in drawn if row == 0} == {
        'guide 8x10', 'feature 4x5', 'kernel map -1, -1 of 3x3', 'upsampled 8x10', 'bilinear'
    }  # fmt: skip
    np.testing.assert_allclose(drawn[0, 'kernel map -1, -1 of 3x3'], recording.stages[0].kernels[0])
    assert 'mixes no window' in [text.get_text() for axes in figure.axes for text in axes.texts]
    # One basis and one range: equal features have equal colours, and bilinear's are between those of the feature.
    np.testing.assert_allclose(drawn[2, 'upsampled 8x10'], drawn[2, 'bilinear'])
    np.testing.assert_allclose(drawn[0, 'feature 4x5'], drawn[2, 'feature 4x5'])
    other = panels(draw_stages(recording.stages[:1], neighbour=(0, 1)))
    np.testing.assert_allclose(other[0, 'kernel map +0, +1 of 3x3'], recording.stages[0].kernels[5])
    assert rgb_of(figure).std() > 10
    with pytest.raises(ValueError, match=r'neighbour must lie within 1 of the centre of a 3x3 window, got \(2, 0\)'):
        draw_stages(recording.stages, neighbour=(2, 0))
    with pytest.raises(ValueError, match='no stage to draw'):
        draw_stages([])


def test_colours_are_principal_components():
    """Of a map along one direction in channel space, one colour channel has all; another map keeps the scale."""
    from sapa_mm.visualization.features import _Basis

    line = torch.linspace(-1, 1, 101).view(1, 1, -1)
    direction = torch.tensor([3.0, 0, 4, 0, 0]).view(-1, 1, 1)
    basis = _Basis.of(direction * line)
    colours = basis.colours(direction * line)
    np.testing.assert_allclose(colours[0, 1:-1, 0], np.linspace(0, 1, 99), atol=0.02)
    np.testing.assert_allclose(basis.colours(direction * line * 0.5)[0, [0, -1], 0], [0.25, 0.75], atol=0.01)
    single = _Basis.of(line).colours(line)  # fewer channels than colours
    np.testing.assert_allclose(single[0, 1:-1, 0], np.linspace(0, 1, 99), atol=0.02)


def test_upsampled_of_several_models(recorded):
    _, recording, _ = recorded
    figure = draw_upsampled(dict(one=recording.stages, two=recording.stages[1:]))
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes]
    assert titles == ['one', 'two'] * 2
    first, second = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    np.testing.assert_array_equal(first, second)  # the second stage of both
    with pytest.raises(ValueError, match='no stage to draw'):
        draw_upsampled(dict(one=recording.stages, two=[]))
    figure = draw_row(dict(a=np.zeros((4, 5, 3)), b=np.ones((4, 5, 3))))
    assert [axes.get_title() for axes in figure.axes] == ['a', 'b']


def test_chosen_points_lie_at_edges():
    picture = np.full((96, 128, 3), 90, np.uint8)
    picture[:, 80:] = 200
    *edges, flat = choose_points(picture)
    assert len(edges) == 3 and all(abs(x - 79.5) <= 2 for _, x in edges)
    assert all(abs(a[0] - b[0]) > 20 for a, b in zip(edges, edges[1:]))
    assert abs(flat[1] - 79.5) > 5
    assert all(6 <= y < 90 and 6 <= x < 122 for y, x in (*edges, flat))
    assert len(choose_points(np.zeros((2, 3, 3), np.uint8), 2)) == 2


def test_bilinear_is_interpolation(recorded):
    stage = recorded[1].stages[0]
    expected = F.interpolate(stage.feature[None], (8, 10), mode='bilinear')[0]
    assert torch.equal(stage.bilinear, expected)
    assert set(visualization.__all__) >= {'draw_affiliation', 'record_upsamplers'}
