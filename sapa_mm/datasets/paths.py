# SPDX-License-Identifier: Apache-2.0
"""Is the data set where the config says? Asked before a model is built, so that the answer comes at once."""

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence


def check_data_paths(cfg, dataloaders: Sequence[str] = ('train_dataloader', 'val_dataloader', 'test_dataloader')):
    """Check that every path which the data loaders read exists.

    Looks at ``data_root``, ``ann_file`` and ``data_prefix`` of each data set, inside wrappers too, and at ``ann_file``
    of the evaluator that goes with the loader. Addresses such as ``s3://...`` are left to their file back end.

    Args:
        cfg (mmengine.Config | dict): A config of mmseg, mmdet or plain mmengine.
        dataloaders (Sequence[str]): The loaders that will be used; absent or empty ones are skipped. Training uses
            ``('train_dataloader', 'val_dataloader')``, testing ``('test_dataloader',)``. Default: all three.

    Raises:
        FileNotFoundError: Names the first missing path, the config key that holds it, and ``docs/data.md``.
    """
    for name in dataloaders:
        for key, path in _paths_of_loader(cfg, name):
            if path and '://' not in path and not osp.exists(path):
                raise FileNotFoundError(
                    f'{path!r} does not exist, but the config names it in {key}. Relative paths start at the current '
                    f'directory. docs/data.md says where each data set comes from and how to lay it out under data/.'
                )


def _paths_of_loader(cfg, name: str) -> Iterator[tuple[str, str]]:
    loader = cfg.get(name) or {}
    yield from _paths_of_dataset(loader.get('dataset'), f'{name}.dataset')
    evaluator = name.replace('_dataloader', '_evaluator')
    metrics = cfg.get(evaluator) or []
    if isinstance(metrics, Mapping):
        yield f'{evaluator}.ann_file', metrics.get('ann_file')
    else:
        for index, metric in enumerate(metrics):
            yield f'{evaluator}[{index}].ann_file', metric.get('ann_file')


def _paths_of_dataset(dataset, key: str) -> Iterator[tuple[str, str]]:
    if not isinstance(dataset, Mapping):  # absent, or already built
        return
    root = dataset.get('data_root') or ''
    yield f'{key}.data_root', root  # first: a missing root is the reason for all that is missing below it
    if dataset.get('ann_file'):
        yield f'{key}.ann_file', _join(root, dataset['ann_file'])
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        if isinstance(prefix, str) and prefix:
            yield f'{key}.data_prefix.{name}', _join(root, prefix)
    yield from _paths_of_dataset(dataset.get('dataset'), f'{key}.dataset')
    for index, part in enumerate(dataset.get('datasets') or []):
        yield from _paths_of_dataset(part, f'{key}.datasets[{index}]')


def _join(root: str, path: str) -> str:
    return path if '://' in path else osp.join(root, path)
