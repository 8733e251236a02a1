# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import torch

from sapa_mm.matting import (
    MattingPreprocessor,
    MattingSample,
    MattingTestDataset,
    MattingTrainDataset,
    Mattor,
    predict_alpha,
    transforms,
)
from sapa_mm.matting.mattor import pad_to_divisor

PIPELINE = [
    dict(type='sapa_mm.LoadForeground'),
    dict(type='sapa_mm.RandomForegroundResize', size=40),
    dict(type='sapa_mm.RandomForegroundAffine'),
    dict(type='sapa_mm.RandomMattingFlip'),
    dict(type='sapa_mm.GenerateTrimap', kernel_size=(1, 5)),
    dict(type='sapa_mm.CropAroundUnknown', size=32),
    dict(type='sapa_mm.RandomForegroundColour'),
    dict(type='sapa_mm.ComposeWithBackground'),
    dict(type='sapa_mm.PackMattingInputs'),
]
TEST_PIPELINE = [dict(type='sapa_mm.LoadMattingPicture'), dict(type='sapa_mm.PackMattingInputs')]


def disc(height=44, width=52):
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - height / 2, x - width / 2)
    return np.clip(255 * (14 - away) / 6, 0, 255).astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        write(tmp_path / f'fg/{number}.png', rng.integers(0, 256, (44, 52, 3), dtype=np.uint8))
        write(tmp_path / f'alpha/{number}.png', disc())
        write(tmp_path / f'bg/b{number}.png', rng.integers(0, 256, (20 + 30 * number, 60, 3), dtype=np.uint8))
        write(tmp_path / f'merged/{number}.png', rng.integers(0, 256, (44, 52, 3), dtype=np.uint8))
        trimap = np.where((disc() == 0) | (disc() == 255), disc(), 90)
        write(tmp_path / f'trimaps/{number}.png', trimap.astype(np.uint8))
    return tmp_path


def samples_of(root, seed):
    dataset = MattingTrainDataset(str(root), pipeline=PIPELINE)
    np.random.seed(seed)
    return [dataset[i] for i in range(len(dataset))]


def test_training_samples(root):
    first, second, other = (samples_of(root, seed) for seed in (1, 1, 2))
    assert len(first) == 3
    for a, b in zip(first, second):
        assert torch.equal(a['inputs'], b['inputs']) and torch.equal(a['data_samples'].trimap, b['data_samples'].trimap)
    assert not all(torch.equal(a['inputs'], b['inputs']) for a, b in zip(first, other))
    for x in first + other:
        sample = x['data_samples']
        assert x['inputs'].shape == sample.foreground.shape == sample.background.shape == (3, 32, 32)
        assert sample.alpha.shape == sample.trimap.shape == (32, 32)
        assert all(part.dtype == torch.uint8 for part in (x['inputs'], sample.alpha, sample.trimap))
        alpha = sample.alpha.double() / 255
        composed = alpha * sample.foreground + (1 - alpha) * sample.background
        assert (composed - sample.image).abs().max() <= 0.5 + 1e-9  # rounded to bytes
        assert torch.equal(x['inputs'], sample.image)
        assert (sample.trimap == 128).any()
        known = sample.trimap != 128
        assert torch.equal(sample.alpha[known], sample.trimap[known])


def test_merged_foregrounds():
    rng = np.random.default_rng(0)
    front, back = (rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(2))
    a, b = (rng.integers(0, 256, (6, 8), dtype=np.uint8) for _ in range(2))
    colour, alpha = transforms.merge(front, a, back, b)
    x, y = a[..., None] / 255, b[..., None] / 255
    assert np.abs(alpha / 255 - (1 - (1 - x) * (1 - y))[..., 0]).max() <= 0.5 / 255 + 1e-9
    # over any background the pair is one after the other; bytes of colour and matte are off by half a step each
    background = rng.integers(0, 256, (6, 8, 3))
    twice = x * front + (1 - x) * (y * back + (1 - y) * background)
    once = alpha[..., None] / 255 * colour + (1 - alpha[..., None] / 255) * background
    assert np.abs(once - twice).max() <= 1 + 1e-9
    opaque = np.full_like(b, 255)
    assert transforms.merge(front, a, back, opaque)[1] is a


@pytest.mark.parametrize('size', [1, 2, 5])
def test_trimap_by_brute_force(size):
    """Known is where the whole ellipse lies in the opaque, or in the transparent, region; outside counts as such."""
    alpha = disc(24, 26)
    trimap = transforms.GenerateTrimap((size, size))(dict(alpha=alpha))['trimap']
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    for i, j in np.ndindex(alpha.shape):
        wanted = 128
        for value in (0, 255):
            places = [(i + r - size // 2, j + c - size // 2) for r, c in zip(*np.nonzero(ellipse))]
            inside = [p for p in places if 0 <= p[0] < alpha.shape[0] and 0 <= p[1] < alpha.shape[1]]
            if all(alpha[p] == value for p in inside):
                wanted = value
        assert trimap[i, j] == wanted, (i, j)


@pytest.mark.parametrize('shape', [(20, 50), (33, 32), (64, 70)])
def test_crops(shape):
    """Of the size asked for, around an unknown pixel, cut or enlarged alike in all maps."""
    alpha = np.zeros(shape, np.uint8)
    trimap = np.zeros(shape, np.uint8)
    alpha[3, 4:7], trimap[3, 4:7] = 77, 128
    for seed in range(5):
        np.random.seed(seed)
        results = dict(alpha=alpha, trimap=trimap, foreground=np.repeat(alpha[..., None], 3, 2))
        results = transforms.CropAroundUnknown(32)(results)
        assert results['alpha'].shape == results['trimap'].shape == (32, 32)
        assert np.array_equal(results['foreground'][..., 1], results['alpha'])
        assert (results['trimap'] == 128).any()


def test_crop_without_unknown_pixels():
    x = np.zeros((40, 40), np.uint8)
    results = transforms.CropAroundUnknown(32)(dict(alpha=x, trimap=x, foreground=np.zeros((40, 40, 3), np.uint8)))
    assert results['alpha'].shape == (32, 32)


def test_colour_jitter_of_nothing_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    same = transforms.RandomForegroundColour(hue=0, saturation=(1, 1), value=(1, 1))(dict(foreground=image))
    assert np.abs(same['foreground'].astype(int) - image).max() <= 1
    np.random.seed(0)
    assert (
        np.abs(transforms.RandomForegroundColour()(dict(foreground=image))['foreground'].astype(int) - image).max() > 5
    )


def test_affine_of_nothing_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    still = transforms.RandomForegroundAffine(degrees=0, scale=(1, 1), shear=0, flip_prob=0)
    out = still(dict(foreground=image, alpha=image[..., 0]))
    assert np.array_equal(out['foreground'], image) and np.array_equal(out['alpha'], image[..., 0])
    mirror = transforms.RandomForegroundAffine(degrees=0, scale=(1, 1), shear=0, flip_prob=1)
    assert np.array_equal(mirror(dict(foreground=image, alpha=image[..., 0]))['alpha'], image[:, ::-1, 0])


def test_test_dataset(root):
    dataset = MattingTestDataset(str(root), pipeline=TEST_PIPELINE)
    assert len(dataset) == 3
    for number in range(3):
        sample = dataset[number]['data_samples']
        assert {sample.img_path[-5], dataset.get_data_info(number)['trimap_path'][-5]} == {str(number)}
        image = cv2.imread(str(root / f'merged/{number}.png'))[..., ::-1]
        assert np.array_equal(dataset[number]['inputs'].permute(1, 2, 0).numpy(), image)
        assert set(sample.trimap.unique().tolist()) == {0, 128, 255}  # 90 in the file


def test_missing_data(root, tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no folder .*none.*docs/data.md'):
        MattingTestDataset(str(tmp_path / 'none'), pipeline=TEST_PIPELINE)
    (root / 'trimaps/1.png').unlink()
    with pytest.raises(ValueError, match="trimaps lacks 1 of the 3 names of .*merged, '1' for one"):
        MattingTestDataset(str(root), pipeline=TEST_PIPELINE)
    (root / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty has no picture'):
        MattingTrainDataset(str(root), dict(foreground='fg', alpha='alpha', background='empty'), PIPELINE)


def test_bad_pictures(root):
    dataset = MattingTestDataset(str(root), pipeline=TEST_PIPELINE)
    write(root / 'trimaps/0.png', disc()[1:])
    with pytest.raises(ValueError, match=r'trimaps/0.png must .* \(43, 52\) and \(44, 52\) \(.*merged/0.png\)'):
        dataset[0]
    for content in (b'', b'no picture'):
        (root / 'merged/1.png').write_bytes(content)
        with pytest.raises(ValueError, match='merged/1.png cannot be read as a picture'):
            dataset[1]
    write(root / 'alpha/2.png', disc()[:, 1:])
    train = MattingTrainDataset(str(root), pipeline=PIPELINE)
    with pytest.raises(ValueError, match=r'\(44, 51\) \(.*alpha/2.png\) and \(44, 52\) \(.*fg/2.png\)'):
        train[2]


@pytest.fixture(scope='module')
def mattor():
    torch.manual_seed(0)
    return Mattor(dict(type='sapa_mm.GuidedMattingNet', upsample_cfg=dict(type='sapa_mm.Nearest'))).eval()


def sample_of(*shape, value=128):
    return MattingSample(trimap=torch.full(shape, value, dtype=torch.uint8))


def test_preprocessor():
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trimap = torch.tensor([0, 128, 255], dtype=torch.uint8).repeat(32, 16)
    inputs = MattingPreprocessor()(dict(inputs=[image], data_samples=[MattingSample(trimap=trimap)]))['inputs']
    assert inputs.shape == (1, 4, 32, 48)
    for channel, (mean, std) in enumerate([(123.675, 58.395), (116.28, 57.12), (103.53, 57.375)]):
        torch.testing.assert_close(inputs[0, channel], (image[channel].float() - mean) / std)
    torch.testing.assert_close(inputs[0, 3], trimap.float() / 255)


def test_padding():
    x = torch.arange(2 * 17 * 20.0).view(1, 2, 17, 20)
    out = pad_to_divisor(x)
    assert out.shape == (1, 2, 32, 32) and torch.equal(out[..., :17, :20], x)
    assert torch.equal(out[..., :17, 20:], x[..., 7:19].flip(3))
    assert torch.equal(out[..., 17:, :20], x[..., 1:16, :].flip(2))
    assert torch.equal(pad_to_divisor(x[..., :1, :1]), x[..., :1, :1].expand(1, 2, 16, 16))


def test_batches_that_do_not_fit(mattor):
    images = [torch.zeros(3, *shape, dtype=torch.uint8) for shape in ((32, 32), (32, 48))]
    with pytest.raises(ValueError, match=r'must have one size, got \[\(32, 32\), \(32, 48\)\]'):
        mattor.data_preprocessor(dict(inputs=images, data_samples=[sample_of(32, 32), sample_of(32, 48)]))
    sample = sample_of(32, 31)
    sample.set_metainfo(dict(img_path='a.png'))
    with pytest.raises(ValueError, match=r'got \(32, 31\) and \(32, 32\) for a.png'):
        mattor.data_preprocessor(dict(inputs=images[:1], data_samples=[sample]))
    with pytest.raises(ValueError, match="mode must be .* got 'train'"):
        mattor(torch.zeros(1, 4, 32, 32), mode='train')


def test_prediction_of_one_picture(mattor, root):
    image = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    trimap = np.tile(np.array([0, 0, 0, 77, 128, 255, 255], np.uint8), (37, 3))
    mattor.train()
    alpha = predict_alpha(mattor, image, trimap)
    assert mattor.training
    mattor.eval()
    assert alpha.shape == (37, 21) and alpha.dtype == np.uint8
    known = (trimap == 0) | (trimap == 255)
    assert np.array_equal(alpha[known], trimap[known])
    inputs = mattor.data_preprocessor(
        dict(
            inputs=[torch.from_numpy(image).movedim(2, 0)],
            data_samples=[MattingSample(trimap=torch.from_numpy(np.where(known, trimap, 128).astype(np.uint8)))],
        )
    )['inputs']
    with torch.no_grad():
        raw = mattor(inputs)[0, 0, :37, :21].clamp(0, 1).mul(255).round().byte().numpy()
    assert np.array_equal(alpha[~known], raw[~known])
    # without an unknown pixel the trimap is the matte
    assert np.array_equal(
        predict_alpha(mattor, image, np.where(known, trimap, 0).astype(np.uint8))[known], trimap[known]
    )
    assert predict_alpha(mattor, str(root / 'merged/0.png'), root / 'trimaps/0.png').shape == (44, 52)


def test_bad_single_pictures(mattor, tmp_path):
    image, trimap = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    with pytest.raises(FileNotFoundError, match='there is no picture .*none.png'):
        predict_alpha(mattor, tmp_path / 'none.png', trimap)
    with pytest.raises(ValueError, match=r'got \(31, 32\) and \(32, 32\)'):
        predict_alpha(mattor, image, trimap[1:])
    with pytest.raises(TypeError, match='must have dtype uint8, got float32'):
        predict_alpha(mattor, image.astype(np.float32), trimap)
    with pytest.raises(ValueError, match=r'must have the shape \(H, W, 3\), got \(32, 32\)'):
        predict_alpha(mattor, image[..., 0], trimap)
    with pytest.raises(ValueError, match='must be an 8-bit map of one channel'):
        predict_alpha(mattor, image, image)
