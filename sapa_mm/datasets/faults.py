# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the data of a config: pictures, label maps, depth maps, mattes and annotation files of COCO."""

import contextlib
import io
import os.path as osp
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

#: Tag of the EXIF orientation, and its values that turn a picture on its side; OpenCV turns it back when it reads.
EXIF_ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
#: Pixels that a box may reach out of its picture: annotation files round.
BOX_TOLERANCE = 1.0
#: What a file is called whose path a data set has under this key.
NAMES = dict(seg_map_path='label map', depth_map_path='depth map', alpha_path='matte', trimap_path='trimap')


@dataclass(frozen=True)
class Fault:
    """One line: ``path``, the ``rule`` that it breaks, and the ``value`` that breaks it."""

    path: str
    rule: str
    value: str

    def __str__(self) -> str:
        return f'{self.path}: {self.rule}, but {self.value}'


@dataclass
class DataPart:
    """One data set of a config, without wrappers.

    Args:
        key (str): Where the config has it, such as ``train_dataloader.dataset``.
        kind (str): Its type.
        annotations (int): Annotations in its annotation file, 0 without one.
        items (list[dict]): What the data set says of each picture.
        files (list[str]): Pictures that belong to none of them, such as backgrounds.
        faults (list[Fault]): What is wrong before any picture is opened.
    """

    key: str
    kind: str
    annotations: int = 0
    items: list = field(default_factory=list)
    files: list = field(default_factory=list)
    faults: list = field(default_factory=list)


def read_data_parts(cfg, dataloaders=('train_dataloader', 'val_dataloader', 'test_dataloader')) -> Iterator[DataPart]:
    """Build each data set of a config, without its transforms, and check its annotation file.

    Data sets that are no ``BaseDataset`` of mmengine's are left out. One that two loaders share comes once.

    Args:
        cfg (mmengine.Config): A config of mmseg, mmdet or plain mmengine, whose modules are registered.
        dataloaders (Sequence[str]): The loaders to look at; absent or empty ones are skipped. Default: all three.

    Yields:
        DataPart: In the order of the config.
    """
    seen = []
    for name in dataloaders:
        loader = cfg.get(name) or {}
        for key, dataset in _datasets_without_wrappers(loader.get('dataset'), f'{name}.dataset'):
            # `pipeline` and `test_mode` change nothing that is checked here
            same = {k: v for k, v in dataset.items() if k not in ('pipeline', 'test_mode')}
            if same not in seen:
                seen.append(same)
                part = _read_part(key, dataset, cfg.get('default_scope', 'mmengine'))
                if part is not None:
                    yield part


def _datasets_without_wrappers(dataset, key):
    if not isinstance(dataset, Mapping):  # absent, or already built
        return
    if 'dataset' in dataset:
        yield from _datasets_without_wrappers(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for index, part in enumerate(dataset['datasets']):
            yield from _datasets_without_wrappers(part, f'{key}.datasets[{index}]')
    else:
        yield key, dataset


def _read_part(key, dataset, scope):
    from mmengine.dataset import BaseDataset
    from mmengine.registry import DATASETS

    kind = dataset['type']
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(kind) if isinstance(kind, str) else kind
        if kind is None or not issubclass(kind, BaseDataset):
            return None
        part = DataPart(key, kind.__name__)
        root = dataset.get('data_root') or ''
        ann_file = osp.join(root, dataset['ann_file']) if dataset.get('ann_file') else ''
        if ann_file.endswith('.json') and '://' not in ann_file:
            classes = (dataset.get('metainfo') or {}).get('classes') or kind.METAINFO.get('classes')
            part.annotations, part.faults = check_coco_file(ann_file, classes)
            if part.annotations is None:  # nothing that could be built from
                part.annotations = 0
                return part
        try:
            # Not serialized: mmengine fails on an empty list there, with a message about arrays.
            with contextlib.redirect_stdout(io.StringIO()):  # of pycocotools
                built = registry.build({**dataset, 'pipeline': [], 'serialize_data': False})
        except Exception as error:  # whatever a data set raises for what it finds
            lines = str(error).strip().splitlines() or ['no reason given']
            part.faults.append(Fault(key, 'the data set must load', f'{type(error).__name__} says: {lines[0]}'))
            return part
    part.items = [built.get_data_info(index) for index in range(len(built))]
    for item in part.items[:1]:
        part.files = list(item.get('background_paths', ()))
    if not part.items:
        folders = [str(folder) for folder in (dataset.get('data_prefix') or {}).values()]
        place = ann_file or ', '.join(osp.join(root, folder) for folder in folders) or root
        suffix = f' with the suffix {built.img_suffix}' if hasattr(built, 'img_suffix') and not ann_file else ''
        kept = ' after filter_cfg' if dataset.get('filter_cfg') and not dataset.get('test_mode') else ''
        value = f'it is empty: none in {place}{suffix}{kept}'
        part.faults.append(Fault(key, 'the data set must have pictures', value))
    return part


def check_coco_file(path: str, classes=None) -> tuple[int | None, list[Fault]]:
    """Check an annotation file of COCO, of instances or panoptic segments.

    Args:
        path (str): The file.
        classes (Sequence[str], optional): The names of the classes that the data set takes from it.

    Returns:
        tuple: How many annotations it has, None if it is no such file; and its faults. A box that lies outside of its
        picture and an unknown category are dropped by mmdet without a word.
    """
    import mmengine

    if not osp.isfile(path):
        return None, [Fault(path, 'the annotation file must exist', 'there is none')]
    if osp.getsize(path) == 0:
        return None, [Fault(path, 'the annotation file must be JSON', 'it is empty (0 bytes)')]
    try:
        content = mmengine.load(path)
    except ValueError as error:
        return None, [Fault(path, 'the annotation file must be JSON', f'it is not: {error}')]
    lacking = [key for key in ('images', 'annotations', 'categories') if key not in content]
    if lacking:
        return None, [
            Fault(path, 'the file needs images, annotations and categories', f'it lacks {", ".join(lacking)}')
        ]
    faults = []
    images = {image['id']: image for image in content['images']}
    categories = {category['id']: category['name'] for category in content['categories']}
    for name in classes or ():
        if name not in categories.values():
            names = ', '.join(sorted(categories.values()))
            faults.append(Fault(path, 'each class of the data set must be a category', f'{name!r} is not: {names}'))
    for annotation in content['annotations']:
        image = images.get(annotation['image_id'])
        # panoptic segments are listed per picture
        segments = annotation.get('segments_info', [annotation])
        for segment in segments:
            what = f'annotation {segment["id"]}'
            if segment['category_id'] not in categories:
                known = ', '.join(map(str, sorted(categories)))
                faults.append(
                    Fault(
                        path,
                        'category_id must be a category',
                        f'{what} has {segment["category_id"]}, not one of {known}',
                    )
                )
            if image is not None and 'bbox' in segment:
                left, top, width, height = segment['bbox']
                if (
                    min(left, top) < -BOX_TOLERANCE
                    or left + width > image['width'] + BOX_TOLERANCE
                    or top + height > image['height'] + BOX_TOLERANCE
                ):
                    size = f'{image["file_name"]} of {image["width"]} x {image["height"]}'
                    faults.append(
                        Fault(path, 'a box must lie in its picture', f'{what} has {segment["bbox"]} in {size}')
                    )
        if image is None:
            what = f'annotation {annotation["id"]}' if 'id' in annotation else f'the one of {annotation["file_name"]}'
            faults.append(Fault(path, 'image_id must be a picture of the file', f'{what} has {annotation["image_id"]}'))
    return sum(len(annotation.get('segments_info', [0])) for annotation in content['annotations']), faults


def check_pictures(part: DataPart, cfg, limit: int | None = None, workers: int = 1) -> Iterator[list[Fault]]:
    """Open the pictures of a data set and whatever belongs to each.

    Args:
        part (DataPart): The data set.
        cfg (mmengine.Config): Its config; the head's ``num_classes`` and ``ignore_index`` bound the labels.
        limit (int, optional): Look at so many, evenly spread, instead of all.
        workers (int): Threads that read. Defaults to 1.

    Yields:
        list[Fault]: Of one picture and what belongs to it, mostly empty. In the order of the data set.
    """
    tasks = [*part.items, *part.files]
    if limit is not None and len(tasks) > limit:
        tasks = [tasks[i] for i in np.linspace(0, len(tasks) - 1, limit).round().astype(int)]
    labels = _label_range(cfg)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda task: _check_item(task, labels), tasks)


def _label_range(cfg):
    """How many classes the head has and which label it ignores; None if it has no one semantic head."""
    head = (cfg.get('model') or {}).get('decode_head')
    if not isinstance(head, Mapping) or head.get('num_classes') is None:
        return None
    return head['num_classes'], head.get('ignore_index', 255)


def _check_item(item, labels):
    if isinstance(item, str):
        return read_picture(item)[1]
    faults, main = [], None
    paths = [(key, path) for key, path in item.items() if key.endswith('_path') and isinstance(path, str)]
    for key, path in sorted(paths, key=lambda pair: pair[0] not in ('img_path', 'foreground_path')):
        pixels, broken = read_picture(path)
        faults += broken
        if broken or pixels is None:
            continue
        height, width = pixels.shape[:2]
        if main is None:
            main = path, height, width
            if 'height' in item and (item['height'], item['width']) != (height, width):
                value = f'it has {width} x {height} and its annotations {item["width"]} x {item["height"]}'
                faults.append(Fault(path, 'a picture must have the size of its annotations', value))
            continue
        if (height, width) != main[1:]:
            value = f'it has {width} x {height} and {main[0]} has {main[2]} x {main[1]}'
            faults.append(Fault(path, f'a {NAMES.get(key, "map")} must have the size of its picture', value))
        is_segments = 'segments_info' in item  # three channels hold one number
        if key in ('seg_map_path', 'depth_map_path') and pixels.ndim != 2 and not is_segments:
            value = f'it has {pixels.shape[2]} channels'
            faults.append(Fault(path, f'a {NAMES[key]} must have one channel', value))
        elif key == 'seg_map_path' and labels is not None and not is_segments:
            faults += _check_labels(path, pixels, item, *labels)
    return faults


def _check_labels(path, pixels, item, num_classes, ignored):
    wrong = Counter()
    for label, count in zip(*np.unique(pixels, return_counts=True)):
        # as LoadAnnotations of mmseg, but without its cut to 8 bits
        label = seen = int(label)
        if item.get('reduce_zero_label'):
            seen = 255 if label in (0, 255) else label - 1
        seen = (item.get('label_map') or {}).get(seen, seen)
        if seen != ignored and not 0 <= seen < num_classes:
            wrong[label] = int(count)
    if not wrong:
        return []
    first = 1 if item.get('reduce_zero_label') else 0
    some = ', '.join(f'{label} in {count} pixels' for label, count in sorted(wrong.items())[:3])
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    rule = f'labels must be {first} to {first + num_classes - 1} or {0 if first else ignored}'
    return [Fault(path, rule, f'it has {some}{more}')]


def read_picture(path: str):
    """Read a picture with all of its pixels.

    Args:
        path (str): The file; an address such as ``s3://...`` is left to its file back end.

    Returns:
        tuple: ``(H, W)`` or ``(H, W, channels)`` as stored (of a palette, the indices), turned as OpenCV turns it, or
        None; and a list with one fault, or none.
    """
    from PIL import Image, UnidentifiedImageError

    if '://' in path:
        return None, []
    if not osp.isfile(path):
        return None, [Fault(path, 'the file must exist', 'there is none')]
    if osp.getsize(path) == 0:
        return None, [Fault(path, 'the file must be a picture', 'it is empty (0 bytes)')]
    try:
        with Image.open(path) as image:
            image.load()
            on_its_side = image.getexif().get(EXIF_ORIENTATION) in ON_ITS_SIDE
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        return None, [Fault(path, 'the file must be a picture', 'it is of no known format')]
    except Exception as error:  # a damaged file can raise anything in a decoder
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return None, [Fault(path, 'the file must be a whole picture', f'it cannot be read: {reason}')]
    return (pixels.swapaxes(0, 1) if on_its_side else pixels), []
