#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make a small segmentation data set: textured shapes with thin parts, without a download.

Label maps are in the layout of ADE20K; the same shapes are also instances and panoptic segments in COCO's formats.
Beside them, two for every five, are pictures of rooms with their depth and the file lists of BTS.

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
from _demo_depth import FOCAL_LENGTH, make_depth_sample

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
    """Return an RGB image ``(SIZE, SIZE, 3)``, its label map and its map of instances ``(SIZE, SIZE)``, all uint8.

    Instances count from 1; 0 is the background.
    """
    image = texture(rng, 0)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    instances = np.zeros((SIZE, SIZE), np.uint8)
    # Every class once or twice, in random order: what is drawn later hides what was drawn before.
    order = rng.permutation([1, 2, 3, 4, *rng.integers(1, 5, int(rng.integers(0, 3)))])
    for instance, label in enumerate(order, start=1):
        mask = shape(rng, label)
        image[mask] = texture(rng, label)[mask]
        labels[mask] = label
        instances[mask] = instance
    image = cv2.GaussianBlur(image, (0, 0), 0.5) * rng.uniform(0.8, 1.1) + rng.normal(0, 6, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), labels, instances


def segments(labels, instances):
    """Describe what is visible of each instance, and the background as instance 0, in the words of COCO.

    Returns:
        list[tuple[dict, ndarray]]: Category, box, area and ``iscrowd``, and the boolean mask. Things have their label
        as category, the background, COCO's stuff, the number after the last.
    """
    found = []
    for instance in np.unique(instances):
        mask = instances == instance
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        category = labels[mask][0] if instance else len(CLASSES)
        found.append(
            (
                dict(category_id=int(category), bbox=[int(x) for x in box], area=int(mask.sum()), iscrowd=0),
                mask,
            )
        )
    return found


def run_lengths(mask):
    """COCO's uncompressed mask: lengths of the runs down the columns, the first of zeros."""
    flat = mask.flatten(order='F')
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *lengths] if flat[0] else lengths)


class CocoWriter:
    """Collects the COCO annotations of one split and writes them."""

    def __init__(self, out, split):
        self.out, self.split = out, split
        self.images, self.instances, self.panoptic = [], [], []
        shutil.rmtree(out / 'panoptic' / split, ignore_errors=True)
        (out / 'panoptic' / split).mkdir(parents=True)

    def add(self, name, labels, instances):
        image_id = len(self.images) + 1
        self.images.append(dict(id=image_id, file_name=name, height=SIZE, width=SIZE))
        # COCO's 0 is "nothing", so the background is number 1
        cv2.imwrite(str(self.out / 'panoptic' / self.split / name), np.stack([0 * instances] * 2 + [instances + 1], -1))
        infos = []
        for number, (info, mask) in zip(np.unique(instances), segments(labels, instances)):
            infos.append(dict(info, id=int(number) + 1))
            if number:
                instance_id = len(self.instances) + 1
                self.instances.append(dict(info, id=instance_id, image_id=image_id, segmentation=run_lengths(mask)))
        self.panoptic.append(dict(image_id=image_id, file_name=name, segments_info=infos))

    def write(self):
        things = [dict(id=i, name=name, isthing=1) for i, name in enumerate(CLASSES) if i]
        stuff = [dict(id=len(CLASSES), name=CLASSES[0], isthing=0)]
        for kind, annotations, categories in (
            ('instances', self.instances, things),
            ('panoptic', self.panoptic, things + stuff),
        ):
            content = dict(images=self.images, annotations=annotations, categories=categories)
            (self.out / 'annotations' / f'{kind}_{self.split}.json').write_text(json.dumps(content) + '\n')


def write_depth_split(out, split, count, seeds):
    """Write pictures, depth maps in millimetres and the list that pairs them."""
    folder, lines = out / 'depth' / split, []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        image, depth = make_depth_sample(np.random.default_rng([*seeds, number]))
        names = [f'{split}/{kind}_{number:04d}.png' for kind in ('rgb', 'depth')]
        cv2.imwrite(str(out / 'depth' / names[0]), image[..., ::-1])
        cv2.imwrite(str(out / 'depth' / names[1]), depth)
        lines.append(' '.join([*names, f'{FOCAL_LENGTH}']))
    (out / 'depth' / f'{split}.txt').write_text('\n'.join(lines) + '\n')


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
        coco = CocoWriter(out, split)
        for number in range(count):
            # A generator of its own for each picture: changing one split leaves the other as it is.
            image, labels, instances = make_sample(np.random.default_rng([seed, index, number]))
            name = f'demo_{split[:5]}_{number:04d}'
            cv2.imwrite(str(out / 'images' / split / f'{name}.png'), image[..., ::-1])
            cv2.imwrite(str(out / 'annotations' / split / f'{name}.png'), labels)
            coco.add(f'{name}.png', labels, instances)
        coco.write()
        write_depth_split(out, split, -(-2 * count // 5), (seed, index + len(SPLITS)))
    stamp.write_text(json.dumps(dict(seed=seed, complete=True, classes=CLASSES, **SPLITS)) + '\n')


def is_complete(out):
    """Whether ``out`` holds a data set that :func:`make_dataset` finished, depth included."""
    stamp, last = Path(out) / STAMP, Path(out) / 'depth' / f'{list(SPLITS)[-1]}.txt'
    return stamp.is_file() and json.loads(stamp.read_text())['complete'] and last.is_file()


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
