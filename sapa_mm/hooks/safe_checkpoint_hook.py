# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a kill or a full disk cannot take away."""

import os
import os.path as osp
from contextlib import suppress

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from sapa_mm.registry import HOOKS

ATOMIC_BACKEND = 'sapa_mm_atomic'
WAITING = 'sapa_mm_checkpoints_to_remove'


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
    """A file backend that keeps what it is asked to remove until :meth:`remove_now`.

    What waits stands in the message hub, hence in the checkpoint that is written meanwhile: a run that goes on from it
    removes what a kill left.
    """

    def __init__(self, backend, message_hub):
        self._backend = backend
        self._message_hub = message_hub

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def remove(self, path):
        self._message_hub.update_info(WAITING, [*self._waiting, osp.basename(path)])

    rmtree = remove

    @property
    def _waiting(self):
        return self._message_hub.get_info(WAITING) or []

    def remove_now(self, folder, keep):
        """Remove what waits in ``folder``, but not the paths of ``keep``, which were written again in the meantime."""
        for name in self._waiting:
            path = self._backend.join_path(folder, name)
            if path not in keep and self._backend.exists(path):
                (self._backend.rmtree if self._backend.isdir(path) else self._backend.remove)(path)
        self._message_hub.update_info(WAITING, [])


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
        self.file_backend = _RemoveLater(self.file_backend, runner.message_hub)
        self._remove_replaced(runner.message_hub.get_info('last_ckpt'))

    def _save_checkpoint_with_step(self, runner, step, meta):
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_replaced(self.last_ckpt)

    def _save_best_checkpoint(self, runner, metrics):
        # The best score goes into every later checkpoint. As a number of numpy, as mmseg's mIoU is, it would not be
        # plain data, and tools that read checkpoints as data alone would pass over them.
        metrics = {key: x.item() if hasattr(x, 'item') else x for key, x in metrics.items()}
        super()._save_best_checkpoint(runner, metrics)
        self._remove_replaced(self.last_ckpt)

    @master_only
    def _remove_replaced(self, last):
        best = [self.best_ckpt_path] if hasattr(self, 'best_ckpt_path') else []
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.remove_now(self.out_dir, keep={last, *best})
