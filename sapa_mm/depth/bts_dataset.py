# SPDX-License-Identifier: Apache-2.0
"""Images and depth maps that a file list of BTS names."""

import os.path as osp

import mmengine
from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS


@DATASETS.register_module()
class BTSDataset(BaseSegDataset):
    """NYU Depth v2, KITTI or another set whose pairs a file list of BTS names.

    A line has the image, its depth map and, perhaps, the focal length in pixels, ``focal`` of the sample. A leading
    slash of a path means the root. An image whose depth map is ``None`` is left out; so is an empty line. The layout
    is in ``docs/data.md``.

    Args:
        ann_file (str): The file list.
        data_prefix (dict): Folders that the paths of the list start at, below ``data_root``: ``img_path`` and
            ``depth_map_path``. Defaults to the root for both.
        **kwargs: The arguments of mmseg's ``BaseSegDataset``; those about labels have no meaning.

    Raises:
        FileNotFoundError: If there is no file list.
        ValueError: If a line has no two paths or a focal length that is no number, or no line names a pair.
    """

    METAINFO = dict(classes=())

    def __init__(self, ann_file: str, data_prefix: dict | None = None, **kwargs) -> None:
        data_prefix = dict(img_path='', depth_map_path='') if data_prefix is None else data_prefix
        super().__init__(ann_file=ann_file, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict per line: ``img_path``, ``depth_map_path``, ``focal`` if it is there, and ``seg_fields``."""
        if '://' not in self.ann_file and not osp.isfile(self.ann_file):
            raise FileNotFoundError(f'there is no file list {self.ann_file!r}; docs/data.md says how to lay data out')
        data_list = []
        for number, line in enumerate(mmengine.list_from_file(self.ann_file, backend_args=self.backend_args), 1):
            fields = line.split()
            if not fields or fields[1:2] == ['None']:
                continue
            try:
                image, depth, *focal = fields
                (focal,) = [float(x) for x in focal] or [None]
            except ValueError:
                raise ValueError(
                    f"{self.ann_file}, line {number}: expected 'IMAGE DEPTH [FOCAL LENGTH]', got {line!r}"
                ) from None
            sample = dict(
                img_path=self._path('img_path', image),
                depth_map_path=self._path('depth_map_path', depth),
                seg_fields=[],
            )
            data_list.append(sample if focal is None else dict(sample, focal=focal))
        if not data_list:
            raise ValueError(f'{self.ann_file} names no image with a depth map')
        return data_list

    def _path(self, prefix: str, path: str) -> str:
        return osp.join(self.data_prefix.get(prefix) or self.data_root or '', path.lstrip('/'))
