# SPDX-License-Identifier: Apache-2.0
"""Data set, loading, augmentation and inference of depth, on pictures in the layout of NYU."""

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmengine import ConfigDict, DefaultScope
from mmengine.registry import DATASETS, MODELS, TRANSFORMS

from sapa_mm.depth import BTSDataset, CropBox, LoadDepth, RandomColor
from sapa_mm.depth.inference import paint_depth, predict_depth

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def root(tmp_path):
    """Two pictures of a scene, whose depth grows to the right, and the list of them."""
    (tmp_path / 'sync' / 'kitchen').mkdir(parents=True)
    lines = []
    for n in range(2):
        depth = np.broadcast_to(np.arange(WIDTH, dtype=np.uint16) * 100 + 1000 * n, (HEIGHT, WIDTH))
        image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
        image[:, :, 2] = np.arange(WIDTH)  # red is the column
        cv2.imwrite(str(tmp_path / f'sync/kitchen/rgb_{n}.png'), image)
        cv2.imwrite(str(tmp_path / f'sync/kitchen/sync_depth_{n}.png'), depth)
        lines.append(f'/kitchen/rgb_{n}.png /kitchen/sync_depth_{n}.png 518.8579')
    (tmp_path / 'train.txt').write_text('\n'.join([*lines, '', 'kitchen/rgb_2.png None 518.8579']) + '\n')
    return tmp_path


def dataset(root, ann_file='train.txt', pipeline=(), **options):
    prefix = dict(img_path='sync', depth_map_path='sync')
    cfg = dict(type='sapa_mm.BTSDataset', data_root=str(root), ann_file=ann_file, data_prefix=prefix, **options)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(dict(cfg, pipeline=list(pipeline)))


LOAD = (dict(type='LoadImageFromFile'), dict(type='sapa_mm.LoadDepth'))


def test_file_list(root):
    """Paths begin at the prefix, with or without a slash; what has no depth is left out."""
    data = dataset(root)
    assert isinstance(data, BTSDataset) and len(data) == 2
    sample = data.get_data_info(1)
    assert sample['img_path'] == str(root / 'sync/kitchen/rgb_1.png')
    assert sample['depth_map_path'] == str(root / 'sync/kitchen/sync_depth_1.png')
    assert sample['focal'] == 518.8579
    (root / 'short.txt').write_text('sync/kitchen/rgb_0.png sync/kitchen/sync_depth_0.png\n')
    plain = BTSDataset('short.txt', data_root=str(root), test_mode=True)
    assert plain.get_data_info(0)['img_path'] == str(root / 'sync/kitchen/rgb_0.png')
    assert 'focal' not in plain.get_data_info(0)


def test_loaded_and_packed(root):
    keys = ('img_path', 'ori_shape', 'img_shape', 'focal')
    item = dataset(root, pipeline=[*LOAD, dict(type='PackSegInputs', meta_keys=keys)])[1]
    depth = item['data_samples'].gt_depth_map.data
    assert depth.shape == (1, HEIGHT, WIDTH) and depth.dtype == torch.float32
    torch.testing.assert_close(depth[0, 0], torch.arange(WIDTH) / 10 + 1)
    assert item['inputs'].shape == (3, HEIGHT, WIDTH) and item['data_samples'].metainfo['focal'] == 518.8579


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file list '.*nowhere/train.txt'; docs/data.md"):
        dataset(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('rgb.png\n', "line 1: expected 'IMAGE DEPTH .*', got 'rgb.png'"),
        ('a.png b.png 1.0\na.png b.png far\n', "line 2: expected .* got 'a.png b.png far'"),
        ('a.png b.png 1 2\n', 'line 1: expected'),
        ('a.png None 1\n', 'names no image with a depth map'),
        ('', 'names no image with a depth map'),
    ],
)
def test_bad_lists(root, content, message):
    (root / 'bad.txt').write_text(content)
    with pytest.raises(ValueError, match=message):
        dataset(root, 'bad.txt')


def test_depth_must_fit_its_image(root):
    path = root / 'sync/kitchen/sync_depth_0.png'
    data = dataset(root, pipeline=LOAD)
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH - 1), np.uint16))
    with pytest.raises(
        ValueError, match=r'sync_depth_0.png must have the size of its image, \(48, 64\), got \(48, 63\)'
    ):
        data[0]
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ValueError, match=r'must have one channel, got the shape \(48, 64, 3\)'):
        data[0]
    path.write_bytes(b'no picture')
    with pytest.raises(ValueError, match='sync_depth_0.png is no picture that can be read'):
        data[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match='sync_depth_0.png'):
        data[0]
    with pytest.raises(ValueError, match='depth_scale must be positive, got 0'):
        LoadDepth(depth_scale=0)


def test_augmentation_keeps_image_and_depth_together(root):
    """Red is the column and so is the depth: through rotation, crop and flip both stay the same function."""
    pipeline = [
        *LOAD,
        dict(type='sapa_mm.CropBox', box=(4, 44, 2, 62)),
        dict(type='RandomRotate', prob=1.0, degree=2.5, pad_val=0, seg_pad_val=0),
        dict(type='RandomCrop', crop_size=(32, 48)),
        dict(type='RandomFlip', prob=0.5),
    ]
    data = dataset(root, pipeline=pipeline)
    np.random.seed(0)
    flips, unknown = 0, 0
    for _ in range(20):
        item = data[0]
        depth, red = item['gt_depth_map'], item['img'][..., 2].astype(np.float32)
        assert depth.shape == red.shape == (32, 48) == tuple(item['img_shape'])
        known = (depth > 0) & (red > 0)
        # depth is the nearest column in tenths of a metre; red is interpolated and rounded, darker towards the outside
        assert np.quantile(np.abs(10 * depth - red)[known], 0.95) <= 1.01
        unknown += (depth == 0).sum()
        flips += item['flip']
    assert 3 < flips < 17 and unknown > 0


def test_crop_box():
    results = CropBox((1, 3, 2, 6))(
        dict(img=np.arange(80).reshape(8, 10), gt_depth_map=np.ones((8, 10)), seg_fields=['gt_depth_map'])
    )
    assert results['img'].tolist() == [[12, 13, 14, 15], [22, 23, 24, 25]]
    assert results['gt_depth_map'].shape == results['img_shape'] == (2, 4)
    with pytest.raises(ValueError, match=r'box \(45, 472, 43, 608\) reaches beyond img of 480x600'):
        CropBox((45, 472, 43, 608))(dict(img=np.zeros((480, 600, 3))))
    with pytest.raises(ValueError, match=r'box must be \(top, bottom, left, right\), got \(3, 3, 0, 1\)'):
        CropBox((3, 3, 0, 1))


def test_random_color():
    """Each factor alone by hand, all within their ranges, half of the images untouched."""
    image = np.linspace(0, 255, 300).reshape(10, 10, 3).astype(np.uint8)

    def change(**ranges):
        options = {**dict(prob=1.0, gamma=(1, 1), brightness=(1, 1), color=(1, 1)), **ranges}
        return RandomColor(**options)(dict(img=image))['img']

    assert change().dtype == np.float32
    np.testing.assert_allclose(change(), image, atol=1e-4)
    np.testing.assert_allclose(change(gamma=(2, 2)), 255 * (image / 255.0) ** 2, atol=1e-3)
    np.testing.assert_allclose(change(brightness=(1.25, 1.25)), np.minimum(1.25 * image, 255), atol=1e-3)
    np.random.seed(0)
    factors = (change(color=(0.5, 0.9)) / np.maximum(image, 1))[5:].reshape(-1, 3)
    assert (np.ptp(factors, axis=0) < 1e-5).all() and np.ptp(factors[0]) > 0.01
    untouched = [np.array_equal(RandomColor()(dict(img=image))['img'], image) for _ in range(200)]
    assert 70 < sum(untouched) < 130


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(prob=2), 'prob must be between 0 and 1, got 2'),
        (dict(gamma=(1.1, 0.9)), r'gamma must be two positive numbers, the least first, got \(1.1, 0.9\)'),
        (dict(color=(0, 1)), r'color must be .* got \(0, 1\)'),
    ],
)
def test_bad_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        RandomColor(**options)


def test_transforms_are_registered():
    for name in ('LoadDepth', 'CropBox', 'RandomColor'):
        assert TRANSFORMS.get(f'sapa_mm.{name}') is not None


@pytest.fixture(scope='module')
def model():
    cfg = ConfigDict(
        type='DepthEstimator',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True),
        backbone=dict(type='sapa_mm.ResNetWithStem', depth=18, base_channels=8, stem_channels=8),
        decode_head=dict(type='sapa_mm.GuidedBTSHead', in_channels=(8, 8, 16, 32, 64), channels=64),
        test_cfg=dict(mode='whole'),
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg)


def test_depth_of_one_picture(root, model):
    path = root / 'sync/kitchen/rgb_0.png'
    depth = predict_depth(model, path)
    assert depth.shape == (HEIGHT, WIDTH) and depth.dtype == np.float32 and 0 < depth.min() < depth.max() < 10
    np.testing.assert_array_equal(depth, predict_depth(model, cv2.imread(str(path))))
    assert model.training  # as it was
    assert predict_depth(model, np.zeros((33, 51, 3), np.uint8)).shape == (33, 51)
    with pytest.raises(ValueError, match=r'shape \(H, W, 3\), got \(5, 5\)'):
        predict_depth(model, np.zeros((5, 5), np.uint8))
    with pytest.raises(FileNotFoundError):
        predict_depth(model, root / 'none.png')
    path.write_bytes(b'no picture')
    with pytest.raises(ValueError, match='is no picture that can be read'):
        predict_depth(model, path)


def test_painted():
    painted = paint_depth(np.array([[0, 1, 5, 10, np.nan]]), 10.0)
    assert painted.shape == (1, 5, 3) and painted.dtype == np.uint8
    assert not painted[0, [0, 4]].any() and painted[0, 1, 2] > painted[0, 1, 0] and painted[0, 3].any()
    assert not paint_depth(np.zeros((2, 2))).any()
