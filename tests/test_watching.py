# SPDX-License-Identifier: Apache-2.0
"""Curves, kernels and predictions in TensorBoard, with the config of the page."""

import re

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('tensorboard')
from tool_helpers import ROOT, make_tiny, run


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    base = make_tiny(tmp_path)
    page = (ROOT / 'docs' / 'watching.md').read_text()
    (block,) = re.findall(r'^```python[^\n]*\n(.*?)^```', page, re.M | re.S)
    watched = tmp_path / 'watched.py'
    watched.write_text(re.sub(r"_base_ = '.*'", f"_base_ = '{base}'", block))
    run(
        'train.py', watched, '--work-dir', tmp_path / 'work',
        '--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'default_hooks.logger.interval=1',
    )  # fmt: skip
    (events,) = (tmp_path / 'work').rglob('events.out.tfevents.*')
    found = EventAccumulator(str(events))
    found.Reload()
    tags = found.Tags()
    assert {'loss', 'lr', 'mIoU'} <= set(tags['scalars'])
    assert [event.step for event in found.Scalars('loss')] == [1, 2, 3, 4]
    pictures = [name for name in tags['images'] if name.startswith('val_')]
    assert {'kernels', 'features'} < set(tags['images']) and pictures
    for name in ('kernels', 'features', *pictures):
        assert len(found.Images(name)[0].encoded_image_string) > 1000
    assert found.Images('kernels')[0].step == 4
