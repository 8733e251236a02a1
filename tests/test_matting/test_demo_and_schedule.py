# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import Config

ROOT = Path(__file__).parents[2]


def test_learning_rates():
    """1e-2 for what the published trainer's words fit, 1e-4 for all else, the upsamplers' own parameters included."""
    from mmengine.optim import build_optim_wrapper

    from sapa_mm.registry import MODELS

    config = ROOT / 'configs/matting/matting_r34_fade_2xb8-180k_composition1k-512x512.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    rates = {
        id(p): g['lr']
        for g in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
        for p in g['params']
    }
    for name, p in model.named_parameters():
        fast = any(word in name for word in ('dconv', 'pred', 'short'))
        assert rates[id(p)] == pytest.approx(1e-2 if fast else 1e-4), name
    assert cfg.train_cfg.max_iters == 30 * 6000 and cfg.param_scheduler[0].milestones == [20 * 6000, 26 * 6000]


def test_demo_data(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import make_demo_matting

    monkeypatch.setattr(make_demo_matting, 'SPLITS', dict(train=2, test=2))
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        make_demo_matting.make_dataset(tmp_path / name, seed)
    files = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*.png'))
    assert len(files) == 12
    for file in files:
        first, second, other = ((tmp_path / name / file).read_bytes() for name in 'abc')
        assert first == second != other
    alpha, trimap = (cv2.imread(str(tmp_path / f'a/test/{kind}/test_0000.png'), 0) for kind in ('alpha', 'trimaps'))
    known = trimap != 128
    assert set(np.unique(trimap)) == {0, 128, 255} and np.array_equal(alpha[known], trimap[known])
    assert len(np.unique(alpha)) > 50  # soft
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/file').write_text('mine')
    with pytest.raises(FileExistsError, match='was not made by this program'):
        make_demo_matting.make_dataset(tmp_path / 'other')
