# SPDX-License-Identifier: Apache-2.0
"""docs/inference.md, as it stands, with checkpoints of random weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip('cv2')

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'inference.md'


def block(toolbox):
    blocks = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    (found,) = (code for code in blocks if re.search(rf'from {toolbox}\.apis import \w*Inferencer', code))
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the page's block of a toolbox in a folder that has the files it names."""

    def run(toolbox, size, classes):
        from mmengine import Config, DefaultScope
        from mmengine.registry import MODELS

        code = block(toolbox)
        config, checkpoint, picture = (
            re.search(pattern, code).group(1)
            for pattern in (r"model='(.+?)'", r"weights='(.+?)'", r"inferencer\('(.+?)'")
        )
        (tmp_path / 'configs').symlink_to(ROOT / 'configs')
        for path in (checkpoint, picture):
            (tmp_path / path).parent.mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / picture), noise)
        cfg = Config.fromfile(ROOT / config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
        palette = [[20 * i, 100, 200] for i in range(len(classes))]
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes, palette=palette))),
            tmp_path / checkpoint,
        )
        monkeypatch.chdir(tmp_path)
        page = {}
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            exec(compile(code, str(PAGE), 'exec'), page)
        loaded = page['inferencer'].model.state_dict()
        assert all(torch.equal(x.cpu(), loaded[name].cpu()) for name, x in model.state_dict().items())
        return page

    return run


def test_segmentation(run, tmp_path, capsys):
    pytest.importorskip('mmseg')
    classes = ('background', 'disc', 'box', 'star', 'stripe')
    page = run('mmseg', (93, 128), classes)
    assert page['labels'].shape == (93, 128) and set(np.unique(page['labels'])) <= set(range(5))
    assert "{'background': " in capsys.readouterr().out
    for folder in ('vis', 'pred'):
        (written,) = (tmp_path / 'painted' / folder).iterdir()
        assert cv2.imread(str(written)).shape[:2] == (93, 128)


def test_detection(run, tmp_path):
    pytest.importorskip('mmdet.apis')
    page = run('mmdet', (101, 127), ('RBC', 'WBC', 'Platelets'))
    prediction = page['prediction']
    boxes = np.array(prediction['bboxes']).reshape(-1, 4)
    assert len(boxes) == len(prediction['labels']) == len(prediction['scores']) > 0
    assert (boxes >= 0).all() and (boxes <= [127, 101, 127, 101]).all()
    (painted,) = (tmp_path / 'painted' / 'vis').iterdir()
    assert cv2.imread(str(painted)).shape[:2] == (101, 127)
