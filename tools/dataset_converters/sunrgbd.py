# SPDX-License-Identifier: Apache-2.0
"""Lay out SUN RGB-D, as the repository sunrgbd-meta-data gives it, for ``sapa_mm.SUNRGBDDataset``."""

import argparse
import os
from pathlib import Path


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('train', type=Path, help='folder of the training images (from SUNRGBD-train_images.tgz)')
    parser.add_argument('test', type=Path, help='folder of the test images (from SUNRGBD-test_images.tgz)')
    parser.add_argument('labels', type=Path, help='folder of the 37-class labels (from the archive of the repository)')
    parser.add_argument('out', type=Path, help='where to put links to the files, for example data/sunrgbd')
    return parser.parse_args()


def files(folder: Path, suffix: str) -> list[Path]:
    found = sorted(folder.glob(f'*{suffix}'))
    if not found:
        raise FileNotFoundError(f'there is no *{suffix} in {folder}')
    return found


def main():
    args = parse_args()
    train, test, labels = files(args.train, '.jpg'), files(args.test, '.jpg'), files(args.labels, '.png')
    if len(labels) != len(test) + len(train):
        raise ValueError(f'{len(labels)} labels do not fit {len(test)} test and {len(train)} training images')
    # the labels of the test images come first, and each list is in the order of its images
    for split, images, maps in (('test', test, labels[: len(test)]), ('train', train, labels[len(test) :])):
        for kind, paths in (('images', images), ('annotations', maps)):
            folder = args.out / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            for image, path in zip(images, paths):
                os.symlink(path.resolve(), folder / f'{image.stem}{path.suffix}')
        print(f'{split}: {len(images)} images in {args.out / "images" / split}')


if __name__ == '__main__':
    main()
