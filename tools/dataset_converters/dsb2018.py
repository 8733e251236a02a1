# SPDX-License-Identifier: Apache-2.0
"""Lay out the nuclei of the Data Science Bowl 2018 (stage 1, corrected annotations) as instance masks in COCO format.

The source has a folder per picture, `ID/images/ID.png` and `ID/masks/*.png`, a mask for each nucleus. There is no
official split: dsb2018_splits.json beside this file has one of 399, 99 and 166 pictures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ('train', 'val', 'test')
#: Characters of a picture's ID that the files here are named after.
NAME = 16


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='folder stage1_train of the repository')
    parser.add_argument('out', type=Path, help='where to write, for example data/dsb2018')
    parser.add_argument('--jpeg-quality', type=int, default=95, help='of the written images (default: %(default)s)')
    parser.add_argument('--splits', type=Path, default=Path(__file__).with_name('dsb2018_splits.json'))
    return parser.parse_args()


def read_splits(path: Path) -> dict[str, str]:
    """The split of each picture of val and test, by the start of its ID."""
    return {start: split for split, starts in json.loads(path.read_text()).items() for start in starts.split()}


def split_of(name: str, splits: dict[str, str]) -> str:
    """``'train'`` unless the ID starts with one of those of val and test."""
    return next((split for start, split in splits.items() if name.startswith(start)), 'train')


def read_masks(folder: Path, height: int, width: int) -> list[dict]:
    """Boxes, areas and run-length codes of all masks of a picture; a mask without a pixel is left out."""
    from pycocotools import mask as coco

    found = []
    for path in sorted((folder / 'masks').glob('*.png')):
        mask = np.array(Image.open(path).convert('L')) > 0
        if mask.shape != (height, width):
            raise ValueError(f'{path} has {mask.shape} pixels, its picture {(height, width)}')
        if mask.any():
            code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            box, area = coco.toBbox(code).astype(int).tolist(), int(coco.area(code))
            code['counts'] = code['counts'].decode()
            found.append(dict(category_id=1, iscrowd=0, area=area, bbox=box, segmentation=code))
    return found


def main():
    args = parse_args()
    splits = read_splits(args.splits)
    folders = sorted(path for path in args.source.iterdir() if path.is_dir())
    pictures = [folder / 'images' / f'{folder.name}.png' for folder in folders]
    missing = [path for path in pictures if not path.is_file()]
    if missing or not pictures:
        raise FileNotFoundError(f'there is no {missing[0]}' if missing else f'{args.source} has no folder')

    written = {
        split: dict(
            info=dict(description='Data Science Bowl 2018 stage 1 train, corrected annotations, CC0'),
            images=[],
            annotations=[],
            categories=[dict(id=1, name='nucleus')],
        )
        for split in SPLITS
    }
    count = 0
    for number, (folder, path) in enumerate(zip(folders, pictures), 1):
        name = folder.name[:NAME]
        picture, split = Image.open(path).convert('RGB'), split_of(folder.name, splits)
        width, height = picture.size
        written[split]['images'].append(dict(id=number, file_name=f'{name}.jpg', width=width, height=height))
        for mask in read_masks(folder, height, width):
            count += 1
            written[split]['annotations'].append(dict(id=count, image_id=number, **mask))
        images = args.out / 'images' / split
        images.mkdir(parents=True, exist_ok=True)
        picture.save(images / f'{name}.jpg', quality=args.jpeg_quality)
    (args.out / 'annotations').mkdir(exist_ok=True)
    for split, coco in written.items():
        (args.out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
        print(f'{split}: {len(coco["images"])} images, {len(coco["annotations"])} nuclei')


if __name__ == '__main__':
    main()
