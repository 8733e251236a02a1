# SPDX-License-Identifier: Apache-2.0
"""Composition-1k, and folders laid out like it."""

import os
import os.path as osp

from mmengine.dataset import BaseDataset

from ..registry import DATASETS

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')


def pictures_by_stem(folder: str) -> dict[str, str]:
    """Name without suffix -> path of every picture in ``folder``, sorted.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no picture.
    """
    if not osp.isdir(folder):
        raise FileNotFoundError(f'there is no folder {folder}; docs/data.md says how data are laid out')
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if not names:
        raise ValueError(f'{folder} has no picture ({", ".join(SUFFIXES)})')
    return {osp.splitext(name)[0]: osp.join(folder, name) for name in names}


def matched(folders: dict[str, str]) -> list[dict[str, str]]:
    """The files of several folders that have one name; ``folders`` maps a key of the result to a folder."""
    files = {key: pictures_by_stem(folder) for key, folder in folders.items()}
    first = next(iter(folders))
    for key, found in files.items():
        lacking = sorted(files[first].keys() - found.keys())
        if lacking:
            raise ValueError(
                f'{folders[key]} lacks {len(lacking)} of the {len(files[first])} names of {folders[first]}, '
                f'{lacking[0]!r} for one'
            )
    return [{key: found[stem] for key, found in files.items()} for stem in files[first]]


@DATASETS.register_module()
class MattingTrainDataset(BaseDataset):
    """Foregrounds with mattes, to be put over backgrounds.

    Args:
        data_root (str): Folder that the prefixes are relative to.
        data_prefix (dict): Folders ``foreground``, ``alpha`` (names like the foregrounds') and ``background`` (any
            pictures). Defaults to ``dict(foreground='fg', alpha='alpha', background='bg')``.
        pipeline (list[dict]): Transforms, from ``sapa_mm.LoadForeground`` on.

    Raises:
        FileNotFoundError: If a folder is not there.
        ValueError: If a folder is empty or a matte is missing.
    """

    def __init__(self, data_root='', data_prefix=None, pipeline=(), **kwargs) -> None:
        data_prefix = data_prefix or dict(foreground='fg', alpha='alpha', background='bg')
        super().__init__(data_root=data_root, data_prefix=data_prefix, pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        self.background_paths = list(pictures_by_stem(self.data_prefix['background']).values())
        self.pairs = matched(dict(foreground_path=self.data_prefix['foreground'], alpha_path=self.data_prefix['alpha']))
        return [dict(pair) for pair in self.pairs]

    def get_data_info(self, idx: int) -> dict:
        return dict(super().get_data_info(idx), background_paths=self.background_paths, others=self.pairs)


@DATASETS.register_module()
class MattingTestDataset(BaseDataset):
    """Pictures with trimaps, and mattes to be held against.

    Args:
        data_root (str): Folder that the prefixes are relative to.
        data_prefix (dict): Folders ``img_path``, ``trimap_path`` and ``alpha_path``, with the same names. Defaults to
            ``dict(img_path='merged', trimap_path='trimaps', alpha_path='alpha')``.
        pipeline (list[dict]): Transforms, from ``sapa_mm.LoadMattingPicture`` on.

    Raises:
        FileNotFoundError: If a folder is not there.
        ValueError: If a folder is empty or lacks a name.
    """

    def __init__(self, data_root='', data_prefix=None, pipeline=(), **kwargs) -> None:
        data_prefix = data_prefix or dict(img_path='merged', trimap_path='trimaps', alpha_path='alpha')
        super().__init__(data_root=data_root, data_prefix=data_prefix, pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        return matched(self.data_prefix)
