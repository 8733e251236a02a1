# SPDX-License-Identifier: Apache-2.0
import os

import pytest

pytest.importorskip('mmengine')

from mmengine.fileio import get_file_backend

from sapa_mm.hooks import SafeCheckpointHook
from sapa_mm.hooks.safe_checkpoint_hook import ATOMIC_BACKEND


@pytest.fixture
def backend():
    return get_file_backend(backend_args=dict(backend=ATOMIC_BACKEND))


def test_file_appears_whole_or_not_at_all(backend, tmp_path, monkeypatch):
    path = tmp_path / 'folder' / 'x.pth'
    backend.put(b'old', str(path))

    def full(descriptor):
        assert path.read_bytes() == b'old'
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        backend.put(b'new', str(path))
    monkeypatch.undo()
    assert path.read_bytes() == b'old' and [p.name for p in path.parent.iterdir()] == ['x.pth']
    backend.put(b'new', str(path))
    assert path.read_bytes() == b'new'


class Info(dict):
    runtime_info = property(lambda self: self)
    get_info, update_info = dict.get, dict.__setitem__


class FakeRunner:
    """Writes a checkpoint as mmengine's runner does, and looks at the folder while it does."""

    def __init__(self, work_dir):
        self.work_dir, self.message_hub, self.seen = str(work_dir), Info(), []
        self.logger = type('Logger', (), dict(info=print, warning=print))
        self.iter = self.epoch = 0

    def save_checkpoint(self, out_dir, filename, *args, backend_args=None, **kwargs):
        self.seen.append(sorted(p for p in os.listdir(out_dir) if p.endswith('.pth')))
        get_file_backend(backend_args=backend_args).put(b'weights', os.path.join(out_dir, filename))


def test_the_old_is_there_until_the_new_is_whole(tmp_path):
    runner = FakeRunner(tmp_path)
    hook = SafeCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1, save_best='mIoU', rule='greater')
    hook.before_train(runner)
    for step in range(3):
        runner.iter = step
        hook._save_checkpoint(runner)
        runner.iter = step + 1
        hook.after_val_epoch(runner, dict(mIoU=float(step)))
    best, last = 'best_mIoU_iter_{}.pth'.format, 'iter_{}.pth'.format
    # one more than is kept while a checkpoint is written: of the last, of the best, and of the last again
    assert runner.seen[3:] == [
        [best(1), last(1)],
        [best(1), last(2)],
        [best(1), best(2), last(2)],
        [best(2), last(2)],
        [best(2), last(3)],
        [best(2), best(3), last(3)],
    ]
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == [best(3), last(3)]
    assert (tmp_path / 'last_checkpoint').read_text().endswith(last(3))
