# SPDX-License-Identifier: Apache-2.0
"""From a foreground, its matte and a background to a training sample, and from the files of a test picture to its own.

All maps are 8-bit; colours are RGB. Random numbers come from numpy's global state, which mmengine seeds.
"""

import os.path as osp

import cv2
import numpy as np
import torch

from ..registry import TRANSFORMS
from .mattor import MattingSample, trimap_of
from .metrics import UNKNOWN


def read_image(path: str, colour: bool) -> np.ndarray:
    """Read an 8-bit picture, ``(H, W, 3)`` RGB or ``(H, W)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'there is no picture {path}')
    # through numpy, because cv2 cannot open every path that Python can
    content = np.fromfile(path, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) if content.size else None
    if image is None:
        raise ValueError(f'{path} cannot be read as a picture')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if colour else image


def _resize(image, size):
    """To ``size`` (H, W), bilinear; averaged where it shrinks."""
    shrinks = size[0] < image.shape[0] and size[1] < image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@TRANSFORMS.register_module()
class LoadForeground:
    """Read a foreground and its matte: ``foreground`` ``(H, W, 3)`` and ``alpha`` ``(H, W)``.

    Args:
        merge_prob (float): With this probability a second foreground, drawn from ``others``, is put behind the first.
            Defaults to 0.5.
    """

    def __init__(self, merge_prob: float = 0.5) -> None:
        self.merge_prob = merge_prob

    def __call__(self, results: dict) -> dict:
        foreground, alpha = self._read(results['foreground_path'], results['alpha_path'])
        if results['others'] and np.random.rand() < self.merge_prob:
            other = results['others'][np.random.randint(len(results['others']))]
            foreground, alpha = merge(foreground, alpha, *self._read(other['foreground_path'], other['alpha_path']))
        results.update(foreground=foreground, alpha=alpha)
        return results

    @staticmethod
    def _read(foreground_path, alpha_path):
        foreground, alpha = read_image(foreground_path, True), read_image(alpha_path, False)
        if foreground.shape[:2] != alpha.shape:
            raise ValueError(
                f'a matte must have the size of its foreground, got {alpha.shape} ({alpha_path}) and '
                f'{foreground.shape[:2]} ({foreground_path})'
            )
        return foreground, alpha


def merge(front: np.ndarray, front_alpha: np.ndarray, back: np.ndarray, back_alpha: np.ndarray):
    """One foreground before another, which is brought to the size of the first.

    Returns:
        The foreground ``(H, W, 3)`` and its matte ``(H, W)``, ``1 - (1 - a) (1 - b)``. A pair whose matte would be
        opaque everywhere has no unknown region, so it stays the first alone.
    """
    back, back_alpha = _resize(back, front.shape[:2]), _resize(back_alpha, front.shape[:2])
    a, b = front_alpha[..., None] / 255, back_alpha[..., None] / 255
    alpha = 1 - (1 - a) * (1 - b)
    if alpha.min() == 1:
        return front, front_alpha
    colour = np.where(alpha > 0, (a * front + (1 - a) * b * back) / np.maximum(alpha, 1e-6), front)
    return np.round(colour).astype(np.uint8), np.round(alpha[..., 0] * 255).astype(np.uint8)


@TRANSFORMS.register_module()
class RandomForegroundResize:
    """Bring the foreground and its matte to a square of ``size``, with probability ``prob``.

    Args:
        size (int): Side. Defaults to 640.
        prob (float): Defaults to 0.25.
    """

    def __init__(self, size: int = 640, prob: float = 0.25) -> None:
        self.size = size
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        if np.random.rand() < self.prob:
            for name in ('foreground', 'alpha'):
                results[name] = _resize(results[name], (self.size, self.size))
        return results


@TRANSFORMS.register_module()
class RandomForegroundAffine:
    """Turn, scale, shear and mirror the foreground and its matte about their centre; what comes in is transparent.

    Args:
        degrees (float): Rotation between minus and plus this. Defaults to 30.
        scale (tuple[float, float]): Range of the scale. Defaults to (0.8, 1.25).
        shear (float): Shear angle between minus and plus this, in degrees. Defaults to 10.
        flip_prob (float): Probability of the mirror image. Defaults to 0.5.
    """

    def __init__(
        self,
        degrees: float = 30,
        scale: tuple[float, float] = (0.8, 1.25),
        shear: float = 10,
        flip_prob: float = 0.5,
    ) -> None:
        self.degrees = degrees
        self.scale = scale
        self.shear = shear
        self.flip_prob = flip_prob

    def __call__(self, results: dict) -> dict:
        height, width = results['alpha'].shape
        angle, shear = np.deg2rad(np.random.uniform(-1, 1, 2) * (self.degrees, self.shear))
        scale = np.random.uniform(*self.scale)
        mirror = -1 if np.random.rand() < self.flip_prob else 1
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = scale * turn @ np.array([[mirror, np.tan(shear)], [0, 1]])
        center = np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = np.column_stack([matrix, center - matrix @ center])
        for name, border in (('foreground', cv2.BORDER_REPLICATE), ('alpha', cv2.BORDER_CONSTANT)):
            results[name] = cv2.warpAffine(
                results[name], matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border
            )
        return results


@TRANSFORMS.register_module()
class RandomMattingFlip:
    """Mirror the foreground and its matte.

    Args:
        prob (float): Defaults to 0.5.
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        if np.random.rand() < self.prob:
            for name in ('foreground', 'alpha'):
                results[name] = np.ascontiguousarray(results[name][:, ::-1])
        return results


@TRANSFORMS.register_module()
class GenerateTrimap:
    """Draw a trimap. Known is what is still opaque, or still transparent, after an erosion by a random ellipse.

    Args:
        kernel_size (tuple[int, int]): Least and largest diameter of the ellipses, in pixels. Defaults to (1, 29).
    """

    def __init__(self, kernel_size: tuple[int, int] = (1, 29)) -> None:
        if not 1 <= kernel_size[0] <= kernel_size[1]:
            raise ValueError(f'kernel_size must be a range of positive integers, got {kernel_size}')
        self.kernel_size = kernel_size

    def __call__(self, results: dict) -> dict:
        alpha = results['alpha']
        trimap = np.full_like(alpha, UNKNOWN)
        for value in (0, 255):
            size = np.random.randint(self.kernel_size[0], self.kernel_size[1] + 1)
            ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
            trimap[cv2.erode((alpha == value).astype(np.uint8), ellipse) == 1] = value
        results['trimap'] = trimap
        return results


@TRANSFORMS.register_module()
class CropAroundUnknown:
    """Crop a square whose centre is a random unknown pixel; smaller maps are enlarged first.

    Args:
        size (int): Side of the crop in pixels. Defaults to 512.
    """

    def __init__(self, size: int = 512) -> None:
        self.size = size

    def __call__(self, results: dict) -> dict:
        names = ('foreground', 'alpha', 'trimap')
        height, width = results['alpha'].shape
        short = min(height, width)
        if short < self.size:
            size = tuple(max(self.size, round(side * self.size / short)) for side in (height, width))
            for name in names:
                if name == 'trimap':
                    results[name] = cv2.resize(results[name], size[::-1], interpolation=cv2.INTER_NEAREST)
                else:
                    results[name] = _resize(results[name], size)
            height, width = size
        rows, columns = np.nonzero(results['trimap'] == UNKNOWN)
        if len(rows):
            pick = np.random.randint(len(rows))
            y, x = rows[pick], columns[pick]
        else:  # a matte without an unknown pixel teaches nothing, but stops nothing
            y, x = np.random.randint(height), np.random.randint(width)
        top = int(np.clip(y - self.size // 2, 0, height - self.size))
        left = int(np.clip(x - self.size // 2, 0, width - self.size))
        for name in names:
            results[name] = np.ascontiguousarray(results[name][top : top + self.size, left : left + self.size])
        return results


@TRANSFORMS.register_module()
class RandomForegroundColour:
    """Shift the hue of the foreground, scale its saturation and value.

    Args:
        hue (float): Degrees of 360, between minus and plus this. Defaults to 40.
        saturation (tuple[float, float]): Range of the factor. Its published value is not known. Defaults to (0.8, 1.2).
        value (tuple[float, float]): Likewise.
    """

    def __init__(
        self,
        hue: float = 40,
        saturation: tuple[float, float] = (0.8, 1.2),
        value: tuple[float, float] = (0.8, 1.2),
    ) -> None:
        self.hue = hue
        self.saturation = saturation
        self.value = value

    def __call__(self, results: dict) -> dict:
        hsv = cv2.cvtColor(results['foreground'].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + np.random.uniform(-self.hue, self.hue)) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] * np.random.uniform(*self.saturation), 0, 1)
        hsv[..., 2] = np.clip(hsv[..., 2] * np.random.uniform(*self.value), 0, 1)
        results['foreground'] = np.round(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
        return results


@TRANSFORMS.register_module()
class ComposeWithBackground:
    """Put the foreground over a random background: ``image`` and ``background``, of the foreground's size.

    The background is drawn from ``background_paths``, and cropped at random to the shape of the foreground.
    """

    def __call__(self, results: dict) -> dict:
        paths = results['background_paths']
        background = read_image(paths[np.random.randint(len(paths))], True)
        height, width = results['alpha'].shape
        scale = max(height / background.shape[0], width / background.shape[1])
        size = tuple(max(need, round(have * scale)) for need, have in zip((height, width), background.shape))
        background = _resize(background, size)
        top, left = (np.random.randint(have - need + 1) for have, need in zip(size, (height, width)))
        background = background[top : top + height, left : left + width]
        alpha = results['alpha'][..., None] / 255
        image = np.round(alpha * results['foreground'] + (1 - alpha) * background).astype(np.uint8)
        results.update(background=np.ascontiguousarray(background), image=image)
        return results


@TRANSFORMS.register_module()
class LoadMattingPicture:
    """Read a test picture: ``image``, ``trimap``, and ``alpha`` where the sample names one."""

    def __call__(self, results: dict) -> dict:
        results['image'] = read_image(results['img_path'], True)
        results['trimap'] = trimap_of(read_image(results['trimap_path'], False), results['trimap_path'])
        if results.get('alpha_path'):
            results['alpha'] = read_image(results['alpha_path'], False)
        for name in ('trimap', 'alpha'):
            if name in results and results[name].shape != results['image'].shape[:2]:
                raise ValueError(
                    f'{results[name + "_path"]} must have the size of its picture, got {results[name].shape} and '
                    f'{results["image"].shape[:2]} ({results["img_path"]})'
                )
        return results


@TRANSFORMS.register_module()
class PackMattingInputs:
    """Make what the model reads: ``inputs``, the picture ``(3, H, W)`` uint8, and ``data_samples``."""

    def __call__(self, results: dict) -> dict:
        sample = MattingSample(metainfo={k: results[k] for k in ('img_path', 'sample_idx') if k in results})
        for name in ('image', 'foreground', 'background'):
            if name in results:
                sample.set_data({name: torch.from_numpy(results[name].transpose(2, 0, 1).copy())})
        for name in ('alpha', 'trimap'):
            if name in results:
                sample.set_data({name: torch.from_numpy(results[name])})
        return dict(inputs=sample.image, data_samples=sample)
