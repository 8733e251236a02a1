# SPDX-License-Identifier: Apache-2.0
"""What the pages show is run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / 'docs'


def code_blocks(page):
    return re.findall(r'^```python\n(.*?)^```', (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def registry():
    """The registry, without what a page adds to it."""
    pytest.importorskip('mmseg')
    # all that register: what does so first within a test would be forgotten after it
    import sapa_mm.backbones
    import sapa_mm.decode_heads
    import sapa_mm.necks
    import sapa_mm.upsamplers  # noqa: F401
    from sapa_mm.registry import MODELS

    before = dict(MODELS.module_dict)
    yield MODELS
    MODELS.module_dict.clear()
    MODELS.module_dict.update(before)


def test_new_upsampler(registry):
    """The worked example is short, and the page's own use of it works; then in a head, through its file's name."""
    pytest.importorskip('mmseg')
    torch = pytest.importorskip('torch')
    example, use = code_blocks('new_upsampler.md')
    assert len(example.splitlines()) < 30
    page = {}
    exec(compile(example, 'new_upsampler.md', 'exec'), page)
    exec(compile(use, 'new_upsampler.md', 'exec'), page)

    upsampler = registry.build(dict(type='sapa_mm.GuideKernels', in_channels=4, guide_channels=6))
    assert upsampler.predict.weight.std() < 0.002
    feature, guide = torch.randn(1, 4, 3, 5), torch.randn(1, 6, 5, 9)
    assert upsampler(feature, guide).shape == (1, 4, 5, 9)
    with pytest.raises(ValueError, match='GuideKernels was built for a guide of 6 channels, got 4'):
        upsampler(feature, feature)
    with pytest.raises(TypeError, match="GuideKernels has no option 'kernelsize'; did you mean 'kernel_size'"):
        registry.build(
            dict(
                type='sapa_mm.GuidedFPN',
                in_channels=[4, 4],
                out_channels=4,
                num_outs=2,
                upsample_cfg=dict(type='sapa_mm.GuideKernels', kernelsize=3),
            )
        )


def test_image_guided(registry):
    """The page's code, and the table's parameters."""
    pytest.importorskip('mmseg')
    torch = pytest.importorskip('torch')
    use, config = code_blocks('image_guided.md')
    page = {}
    exec(compile(use, 'image_guided.md', 'exec'), page)
    assert page['finer'].shape == (1, 384, 112, 112)
    exec(compile(config, 'image_guided.md', 'exec'), page)
    (out,) = registry.build(page['model']['backbone'])(torch.randn(1, 3, 64, 96))
    assert out.shape == (1, 512, 16, 24)
    rows = re.findall(r'^\| `(sapa_mm\.\w+)` \|.*?\| ([\d,]+) \|', (DOCS / 'image_guided.md').read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, count in rows:
        module = registry.build(dict(type=name, **({'in_channels': 384} if name.endswith('Stack') else {})))
        assert sum(p.numel() for p in module.parameters()) == int(count.replace(',', '')), name
