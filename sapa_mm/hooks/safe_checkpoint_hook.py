# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a kill or a full disk cannot take away."""

import os
import os.path as osp
from contextlib import suppress

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from sapa_mm.registry import HOOKS

ATOMIC_BACKEND = 'sapa_mm_atomic'


@register_backend(ATOMIC_BACKEND, force=True)
class AtomicLocalBackend(LocalBackend):
    """Local files that appear whole or not at all: written beside their place, flushed to the disk, then renamed."""

    def put(self, obj: bytes, filepath: str) -> None:
        """Write ``obj`` to ``filepath``. If that fails, what was there before is untouched.

        Args:
            obj: The content.
            filepath: Where it goes; missing folders are made.
        """
        folder = osp.dirname(osp.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        # In the same folder: a rename is atomic only within one file system. The name is always the same, so that a run
        # that goes on after a kill writes over what the kill left.
        beside = f'{filepath}.part'
        try:
            with open(beside, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, filepath)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
        _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Let the rename survive a power cut, where folders can be flushed at all (not on Windows)."""
    if hasattr(os, 'O_DIRECTORY'):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _RemoveLater:
    """A file backend that keeps what it is asked to remove until :meth:`remove_now`."""

    def __init__(self, backend):
        self._backend = backend
        self._waiting = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def remove(self, path):
        self._waiting.append((self._backend.remove, path))

    def rmtree(self, path):
        self._waiting.append((self._backend.rmtree, path))

    def remove_now(self, keep):
        """Remove what waits, but not the paths of ``keep``, which were written again in the meantime."""
        waiting, self._waiting = self._waiting, []
        for remove, path in waiting:
            if path not in keep and self._backend.exists(path):
                remove(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, with which a whole checkpoint is on the disk at any moment.

    mmengine removes the oldest checkpoint before it writes the new one, and writes it in place. A kill in between, or
    a full disk, leaves a file that is cut short and, with ``max_keep_ckpts=1``, nothing else. Here a checkpoint is
    written beside its place, flushed and renamed, and what it replaces is removed after that. The disk must have
    room for one checkpoint more than are kept. Remote storage (``backend_args``) writes as it always does.

    Registered as ``sapa_mm.SafeCheckpointHook``; it takes the arguments of ``CheckpointHook``. ``tools/train.py`` puts
    it in the place of ``default_hooks.checkpoint`` in every config.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if isinstance(self.file_backend, LocalBackend):
            self.backend_args = dict(backend=ATOMIC_BACKEND)
        self.file_backend = _RemoveLater(self.file_backend)

    def _save_checkpoint_with_step(self, runner, step, meta):
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_replaced()

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        self._remove_replaced()

    def _remove_replaced(self):
        best = [self.best_ckpt_path] if hasattr(self, 'best_ckpt_path') else []
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.remove_now(keep={self.last_ckpt, *best})
