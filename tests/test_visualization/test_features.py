# SPDX-License-Identifier: Apache-2.0
"""What is recorded is what the upsamplers saw and gave, and the pictures show it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('matplotlib')
pytest.importorskip('cv2')

from sapa_mm import visualization
from sapa_mm.upsamplers import SAPA, Bilinear, DySample
from sapa_mm.visualization import (
    choose_points,
    draw_kernels,
    draw_row,
    draw_stages,
    draw_upsampled,
    record_upsamplers,
    rgb_of,
)
from sapa_mm.visualization.features import _extent


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


@pytest.mark.parametrize(
    'cells, pixels, expected',
    [(15, 480, 480), (8, 480, 512), (34, 1088, 1088), (121, 481, 484), (11, 360, 352), (37, 518, 518), (90, 50, 50)],
)
def test_extent_is_cells_times_stride(cells, pixels, expected):
    """Rounded up, or else down; a patch of 14 is no power of two and divides the side."""
    assert _extent(cells, pixels) == expected


class Windows(nn.Module):
    """What a model that cuts its picture into two windows does, with a preprocessor of four channels in RGB order."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = nn.Identity()
        self.data_preprocessor.mean, self.data_preprocessor.std = torch.tensor(100.0), torch.tensor(50.0)
        self.backbone = nn.Conv2d(4, 4, 2, stride=2, bias=False)
        self.upsample = SAPA(4, embed_dims=3, kernel_size=3)

    def forward(self, data):
        inputs = self.data_preprocessor(data)['inputs']
        for window in (inputs[..., :8], inputs[..., 8:]):
            guide = self.backbone(window)
            self.upsample(F.avg_pool2d(guide, 2), guide)


def test_windows_have_pictures_of_their_own():
    values = torch.arange(4 * 8 * 16).view(1, 4, 8, 16) % 256
    model = Windows().eval()
    with record_upsamplers(model) as recording:
        model(dict(inputs=(values - 100.0) / 50))
    assert len(recording.stages) == 2 and recording.first == recording.stages[:1]
    for stage, window in zip(recording.stages, (values[..., :8], values[..., 8:]), strict=True):
        np.testing.assert_array_equal(stage.picture, window[0, :3].permute(1, 2, 0).numpy())
        assert stage.extents == ((8, 8), (8, 8))
    assert rgb_of(draw_kernels(recording.stages[0], [(7, 7)])).std() > 10
    with pytest.raises(ValueError, match='has no kernels of a window'):
        draw_kernels(dataclasses.replace(recording.stages[0], kernels=None))


@pytest.mark.parametrize('pad_in_pipeline', [False, True])
def test_padded_detector_is_drawn_at_its_rows_and_columns(pad_in_pipeline, monkeypatch):
    """A point of a picture of 480 x 640 that a detector sees as 512 x 672: the network itself says which cell it is."""
    pytest.importorskip('mmdet.models')
    from mmdet.models import DetDataPreprocessor, ResNet
    from mmdet.structures import DetDataSample

    from sapa_mm.necks import GuidedFPN

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'tools'))
    from draw_features import input_points, ratios_of

    torch.manual_seed(0)
    model = nn.Module()
    model.data_preprocessor = DetDataPreprocessor(mean=[0.0] * 3, std=[1.0] * 3, pad_size_divisor=32)
    model.backbone = ResNet(18, base_channels=8, out_indices=(0, 1, 2, 3))
    model.neck = GuidedFPN([8, 16, 32, 64], 8, 4, upsample_cfg=dict(type='sapa_mm.SAPA', embed_dims=4))
    model.eval()
    shape = (512, 672) if pad_in_pipeline else (500, 667)  # resized; YOLOX's pipeline then pads, and says so
    meta = dict(ori_shape=(480, 640), img_shape=shape, scale_factor=(667 / 640, 500 / 480), batch_input_shape=None)
    picture = torch.full((3, *shape), 100, dtype=torch.uint8)
    point, seen = (470, 612), (490, 638)  # near the far corner, where an error is largest
    stages = []
    for value in (100, 250):
        picture[:, seen[0] - 1 : seen[0] + 2, seen[1] - 1 : seen[1] + 2] = value
        with record_upsamplers(model) as recording, torch.no_grad():
            sample = DetDataSample(metainfo=meta)
            inputs = model.data_preprocessor(dict(inputs=[picture], data_samples=[sample]))['inputs']
            model.neck(model.backbone(inputs))
        stages.append(recording.stages[-1])
    assert stages[0].picture.shape == (512, 672, 3) and stages[0].guide.shape[1:] == (128, 168)
    change = (stages[1].guide - stages[0].guide).abs().sum(0)
    answer = divmod(int(change.argmax()), change.shape[1])
    assert all(abs(found - pixel // 4) <= 1 for found, pixel in zip(answer, seen)), answer
    # Each kernel says where it is: its row in the first cell of the window, its column in the second.
    rows, columns = torch.meshgrid(torch.arange(128) / 100, torch.arange(168) / 100, indexing='ij')
    kernels = torch.cat([rows[None], columns[None], torch.zeros(23, 128, 168)])
    ratios = ratios_of('mmdet', sample)
    (drawn,) = input_points([point], ratios)
    assert all(abs(a - b) <= 1 for a, b in zip(drawn, seen))
    figure = draw_kernels(dataclasses.replace(stages[1], kernels=kernels), [drawn])
    (axes,) = figure.subfigs[1].axes
    assert [text.get_text() for text in axes.texts[:2]] == [str(drawn[0] // 4), str(drawn[1] // 4)]
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    # five cells of 8 pixels; the one in the middle holds the point
    assert (bottom - top, right - left) == (40, 40)
    assert ((top + 16) // 8, (left + 16) // 8) == (drawn[0] // 8, drawn[1] // 8)


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
