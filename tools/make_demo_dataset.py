#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make a small segmentation data set: textured shapes with thin parts, in the layout of ADE20K, without a download.

Colours say nothing about the class: every texture is drawn in random colours. What tells a disc from a box is the
texture, and what makes a good boundary is following the outline of stars and stripes that are a few pixels thin.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('background', 'disc', 'box', 'star', 'stripe')
SIZE = 128
SPLITS = dict(training=200, validation=40)
STAMP = 'made_by_sapa_mm.json'


def texture(rng, label):
    """Draw the texture of a class in random colours, ``(SIZE, SIZE, 3)`` in [0, 255]."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    phase, turn = rng.uniform(0, 2 * np.pi, 2)
    if label == 0:  # clouds: smooth, low contrast
        clouds = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE)).astype(np.float32), (0, 0), rng.uniform(6, 12))
        pattern = (clouds - clouds.min()) / np.ptp(clouds)
    elif label == 1:  # wide rings
        centre = rng.uniform(0, SIZE, 2)
        pattern = 0.5 + 0.5 * np.sin(np.hypot(y - centre[0], x - centre[1]) * (2 * np.pi / rng.uniform(11, 15)) + phase)
    elif label == 2:  # a fine checkerboard
        side = rng.uniform(3, 4)
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        pattern = (np.floor(u / side) + np.floor(v / side)) % 2
    elif label == 3:  # grain: every pixel for itself
        pattern = rng.uniform(0, 1, (SIZE, SIZE)).astype(np.float32)
    else:  # plain, with a slow gradient
        pattern = 0.5 + 0.5 * np.sin((x * np.cos(turn) + y * np.sin(turn)) / 40 + phase) * 0.3
    # Two colours far enough apart that the pattern can be seen; the background keeps to a narrow band.
    first = rng.uniform(0, 255, 3)
    spread = rng.uniform(30, 60) if label == 0 else rng.uniform(120, 180)
    direction = rng.standard_normal(3)
    second = first + np.where(first > 127, -1, 1) * np.abs(direction) / np.abs(direction).max() * spread
    return first + pattern[..., None] * (second - first)


def shape(rng, label):
    """Draw the outline of a class at a random place, a boolean mask ``(SIZE, SIZE)``."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    centre = rng.uniform(0.12 * SIZE, 0.88 * SIZE, 2)
    radius, turn = rng.uniform(16, 32), rng.uniform(0, 2 * np.pi)
    if label == 1:
        axes = radius * rng.uniform(0.7, 1, 2)
        cv2.ellipse(mask, (tuple(centre.tolist()), tuple((2 * axes).tolist()), float(np.degrees(turn))), 1, -1)
    elif label == 2:
        sides = radius * rng.uniform(1.1, 1.9, 2)
        corners = cv2.boxPoints((tuple(centre.tolist()), tuple(sides.tolist()), float(np.degrees(turn))))
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    elif label == 3:  # long thin arms
        arms = int(rng.integers(5, 8))
        angles = turn + np.arange(2 * arms) * np.pi / arms
        reach = np.where(np.arange(2 * arms) % 2 == 0, 1.15 * radius, 0.4 * radius)
        points = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    else:  # a bent band from border to border, 4 to 8 pixels wide
        along = np.linspace(-SIZE, SIZE, 65)
        across = rng.uniform(4, 14) * np.sin(along / rng.uniform(12, 30) + turn)
        points = centre + np.stack(
            [along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)], 1
        )
        cv2.polylines(mask, [np.round(points).astype(np.int32)], False, 1, int(rng.integers(4, 9)))
    return mask.astype(bool)


def make_sample(rng):
    """Return an RGB image ``(SIZE, SIZE, 3)`` and its label map ``(SIZE, SIZE)``, both uint8."""
    image = texture(rng, 0)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    # Every class once or twice, in random order: what is drawn later hides what was drawn before.
    order = rng.permutation([1, 2, 3, 4, *rng.integers(1, 5, int(rng.integers(0, 3)))])
    for label in order:
        mask = shape(rng, label)
        image[mask] = texture(rng, label)[mask]
        labels[mask] = label
    image = cv2.GaussianBlur(image, (0, 0), 0.5) * rng.uniform(0.8, 1.1) + rng.normal(0, 6, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), labels


def make_dataset(out, seed=0):
    """Write the data set.

    Args:
        out (Path): Folder to make, or one that this function made before.
        seed (int): The same seed gives the same files. Defaults to 0.

    Raises:
        FileExistsError: If ``out`` holds something else.
    """
    out = Path(out)
    stamp = out / STAMP
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not stamp.is_file())):
        raise FileExistsError(f'{out} exists and was not made by this program; nothing was changed')
    out.mkdir(parents=True, exist_ok=True)
    # The stamp comes first, so that a run that was cut short can be repeated; `complete` comes last.
    stamp.write_text(json.dumps(dict(seed=seed, complete=False)) + '\n')
    for index, (split, count) in enumerate(SPLITS.items()):
        for kind in ('images', 'annotations'):
            shutil.rmtree(out / kind / split, ignore_errors=True)
            (out / kind / split).mkdir(parents=True)
        for number in range(count):
            # A generator of its own for each picture: changing one split leaves the other as it is.
            image, labels = make_sample(np.random.default_rng([seed, index, number]))
            name = f'demo_{split[:5]}_{number:04d}'
            cv2.imwrite(str(out / 'images' / split / f'{name}.png'), image[..., ::-1])
            cv2.imwrite(str(out / 'annotations' / split / f'{name}.png'), labels)
    stamp.write_text(json.dumps(dict(seed=seed, complete=True, classes=CLASSES, **SPLITS)) + '\n')


def is_complete(out):
    """Whether ``out`` holds a data set that :func:`make_dataset` finished."""
    stamp = Path(out) / STAMP
    return stamp.is_file() and json.loads(stamp.read_text())['complete']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/demo'), help='folder to make (default: data/demo)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same files (default: 0)')
    args = parser.parse_args()
    try:
        make_dataset(args.out, args.seed)
    except FileExistsError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
    print(f'{sum(SPLITS.values())} pictures in {args.out}')


if __name__ == '__main__':
    main()
