#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make a small matting data set, without a download: foregrounds with hair, veils and soft edges, and exact mattes.

The training split has foregrounds, mattes and backgrounds, to be composed anew each time; the test split has pictures
that are composed of others, with trimaps. Mattes are drawn at four times the size and averaged, so that a strand
thinner than a pixel has the opacity of the area it covers.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from make_demo_dataset import SIZE, STAMP, texture

FINE = 4  # positions per pixel and axis that are averaged
SPLITS = dict(train=60, test=20)
FOLDERS = dict(train=('fg', 'alpha', 'bg'), test=('merged', 'alpha', 'trimaps'))
UNKNOWN = 128


def over(front, back):
    """Opacity of one layer before another."""
    return 1 - (1 - front) * (1 - back)


def averaged(fine):
    return cv2.resize(fine, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def outline(rng, centre, radius, points=96):
    """A wavy closed curve, ``(points, 2)`` in pixels, and the angles of its points."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = sum(rng.uniform(0, 0.12) * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    reach = radius * (1 + waves)
    return centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), angles


def draw_body(rng, centre, radius):
    """An opaque body whose edge fades over a few pixels; and its outline."""
    points, angles = outline(rng, centre, radius)
    body = np.zeros((SIZE * FINE, SIZE * FINE), np.float32)
    cv2.fillPoly(body, [np.round(points * FINE).astype(np.int32)], 1)
    return averaged(cv2.GaussianBlur(body, (0, 0), FINE * rng.uniform(0.3, 2.0))), points, angles


def draw_hair(rng, points, angles):
    """Bent strands of a quarter to one and a half pixels that grow from part of the outline."""
    hair = np.zeros((SIZE, SIZE), np.float32)
    start, length = rng.uniform(0, 2 * np.pi), rng.uniform(14, 30)
    along = np.linspace(0, 1, 24)
    for _ in range(int(rng.integers(25, 45))):
        root = int((start + rng.uniform(0, 0.6 * np.pi)) / (2 * np.pi) * len(points)) % len(points)
        turn = angles[root] + rng.normal(0, 0.3) + rng.normal(0, 0.8) * along
        steps = rng.uniform(0.6, 1.2) * length / len(along) * np.stack([np.cos(turn), np.sin(turn)], 1)
        strand = np.zeros((SIZE * FINE, SIZE * FINE), np.float32)
        curve = np.round((points[root] + np.cumsum(steps, 0)) * FINE).astype(np.int32)
        cv2.polylines(strand, [curve], False, 1, int(rng.integers(1, 7)))
        hair = over(hair, averaged(strand) * rng.uniform(0.6, 1))
    return hair


def draw_veil(rng, points):
    """A patch that lets through a third to four fifths of what is behind it, with slow folds."""
    centre = points[rng.integers(len(points))]
    shape, _ = outline(rng, centre, rng.uniform(10, 20))
    veil = np.zeros((SIZE * FINE, SIZE * FINE), np.float32)
    cv2.fillPoly(veil, [np.round(shape * FINE).astype(np.int32)], 1)
    y, x = np.mgrid[:SIZE, :SIZE]
    turn = rng.uniform(0, 2 * np.pi)
    folds = 0.5 + 0.5 * np.sin((x * np.cos(turn) + y * np.sin(turn)) / rng.uniform(2, 5))
    return averaged(veil) * (rng.uniform(0.2, 0.45) + 0.22 * folds)


def make_foreground(rng):
    """Return an RGB foreground ``(SIZE, SIZE, 3)`` and its matte ``(SIZE, SIZE)``, both uint8."""
    centre, radius = rng.uniform(0.35 * SIZE, 0.65 * SIZE, 2), rng.uniform(20, 32)
    body, points, angles = draw_body(rng, centre, radius)
    alpha = over(over(body, draw_hair(rng, points, angles)), draw_veil(rng, points))
    colour = texture(rng, int(rng.integers(0, 5)))
    # hair of one colour, so that its opacity cannot be read off the texture
    hair = np.clip(rng.uniform(0, 255, 3) + rng.normal(0, 6, (SIZE, SIZE, 3)), 0, 255)
    colour = body[..., None] * colour + (1 - body[..., None]) * hair
    return as_bytes(colour), as_bytes(255 * alpha)


def make_background(rng):
    """Return an RGB picture of textures in front of each other, ``(SIZE, SIZE, 3)`` uint8."""
    picture = texture(rng, 0)
    for _ in range(int(rng.integers(2, 5))):
        body, _, _ = draw_body(rng, rng.uniform(0, SIZE, 2), rng.uniform(15, 50))
        picture += body[..., None] * (texture(rng, int(rng.integers(0, 5))) - picture)
    return as_bytes(picture + rng.normal(0, 4, picture.shape))


def make_trimap(rng, alpha):
    """A trimap like those of training: what is still known after an erosion by an ellipse of 3 to 9 pixels."""
    trimap = np.full_like(alpha, UNKNOWN)
    for value in (0, 255):
        side = int(rng.integers(3, 10))
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        trimap[cv2.erode((alpha == value).astype(np.uint8), ellipse) == 1] = value
    return trimap


def as_bytes(x):
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


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
        for folder in FOLDERS[split]:
            shutil.rmtree(out / split / folder, ignore_errors=True)
            (out / split / folder).mkdir(parents=True)
        for number in range(count):
            # A generator of its own for each picture: changing one split leaves the other as it is.
            rng = np.random.default_rng([seed, index, number])
            foreground, alpha = make_foreground(rng)
            background = make_background(rng)
            if split == 'train':
                pictures = (foreground, alpha, background)
            else:
                share = alpha[..., None] / 255
                merged = as_bytes(share * foreground + (1 - share) * background)
                pictures = (merged, alpha, make_trimap(rng, alpha))
            for folder, picture in zip(FOLDERS[split], pictures):
                picture = picture[..., ::-1] if picture.ndim == 3 else picture
                cv2.imwrite(str(out / split / folder / f'{split}_{number:04d}.png'), picture)
    stamp.write_text(json.dumps(dict(seed=seed, complete=True, **SPLITS)) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/demo_matting'), help='folder (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same files (default: 0)')
    args = parser.parse_args()
    try:
        make_dataset(args.out, args.seed)
    except FileExistsError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
    print(f'{SPLITS["train"]} foregrounds and {SPLITS["test"]} test pictures in {args.out}')


if __name__ == '__main__':
    main()
