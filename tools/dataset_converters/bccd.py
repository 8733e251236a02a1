# SPDX-License-Identifier: Apache-2.0
"""Lay out the BCCD blood cell images with boxes in COCO format."""

import argparse
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

SPLITS = ('train', 'val', 'test')
CLASSES = ('RBC', 'WBC', 'Platelets')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='folder BCCD of the BCCD_Dataset repository')
    parser.add_argument('out', type=Path, help='where to write, for example data/bccd')
    return parser.parse_args()


def read_boxes(path: Path, width: int, height: int) -> list[dict]:
    """Boxes of one VOC file, whose corners count from 1 and belong to the box, as COCO's (left, top, width, height)."""
    boxes = []
    for item in ET.parse(path).iter('object'):
        name = item.findtext('name')
        if name not in CLASSES:
            raise ValueError(f'{path}: unknown class {name!r}, expected one of {CLASSES}')
        left, top, right, bottom = (float(item.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
        left, top = max(left - 1, 0), max(top - 1, 0)
        w, h = min(right, width) - left, min(bottom, height) - top
        if w > 0 and h > 0:  # a box without area would make the training loss NaN
            boxes.append(dict(category_id=CLASSES.index(name) + 1, bbox=[left, top, w, h], area=w * h, iscrowd=0))
    return boxes


def convert(source: Path, split: str) -> dict:
    images, annotations = [], []
    for stem in (source / 'ImageSets' / 'Main' / f'{split}.txt').read_text().split():
        if not (source / 'JPEGImages' / f'{stem}.jpg').is_file():
            raise FileNotFoundError(f'{source}/JPEGImages/{stem}.jpg is in the {split} list but does not exist')
        xml = source / 'Annotations' / f'{stem}.xml'
        size = ET.parse(xml).find('size')
        width, height = int(size.findtext('width')), int(size.findtext('height'))
        image = dict(id=len(images), file_name=f'{stem}.jpg', width=width, height=height)
        for box in read_boxes(xml, width, height):
            annotations.append(dict(id=len(annotations) + 1, image_id=image['id'], **box))
        images.append(image)
    return dict(
        info=dict(description='BCCD, github.com/Shenggan/BCCD_Dataset (MIT licence)'),
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
    )


def main():
    args = parse_args()
    splits = {split: convert(args.source, split) for split in SPLITS}  # complain before anything is written
    (args.out / 'images').mkdir(parents=True, exist_ok=True)
    (args.out / 'annotations').mkdir(exist_ok=True)
    for split, coco in splits.items():
        for image in coco['images']:
            shutil.copyfile(args.source / 'JPEGImages' / image['file_name'], args.out / 'images' / image['file_name'])
        (args.out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
        print(f'{split}: {len(coco["images"])} images, {len(coco["annotations"])} boxes')


if __name__ == '__main__':
    main()
