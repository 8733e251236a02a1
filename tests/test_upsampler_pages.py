# SPDX-License-Identifier: Apache-2.0
"""The stored pages of docs/upsamplers are those that tools/dev/upsampler_pages.py makes of the docstrings now."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from sapa_mm.registry import MODELS
from sapa_mm.upsamplers import SAPA, UPSAMPLERS, BaseUpsampler

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('upsampler_pages', ROOT / 'tools' / 'dev' / 'upsampler_pages.py')
upsampler_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(upsampler_pages)


@pytest.mark.parametrize('name', UPSAMPLERS)
def test_page_is_current(name):
    stored = upsampler_pages.OUT / f'{name}.md'
    assert stored.read_text() == upsampler_pages.page(name), 'run tools/dev/upsampler_pages.py'
    assert stored.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


def test_index_is_current_and_complete():
    stored = upsampler_pages.OUT / 'README.md'
    assert stored.read_text() == upsampler_pages.index(), 'run tools/dev/upsampler_pages.py'
    registered = {
        name
        for name, kind in MODELS.module_dict.items()
        if inspect.isclass(kind) and issubclass(kind, BaseUpsampler) and kind.__module__.startswith('sapa_mm.')
    }
    assert registered == set(UPSAMPLERS)  # the one list has no gap
    pages = {path.stem for path in upsampler_pages.OUT.iterdir()} - {'README'}
    assert pages == registered


@pytest.mark.parametrize('name', UPSAMPLERS)
def test_page_has_everything(name):
    """The maths, every option of the signature, the cost and the source; nothing is left of the docstring's markup."""
    text = upsampler_pages.page(name)
    for option in inspect.signature(UPSAMPLERS[name]).parameters:
        assert f'\n- `{option}` (' in text, option
    assert 'Apache License 2.0' in text
    assert text.count('\n```') % 2 == 0
    assert not re.search(r'::\s|:\w+:`|^===', text, re.MULTILINE)


def test_tables_and_literal_blocks():
    block = 'a::\n\n    b = c\n      d'
    table = '===  ==\nf    g\n===  ==\n1    23\n===  =='
    text = upsampler_pages.markdown(f'{block}\n\nsee :func:`e`\n\n{table}')
    assert text == 'a:\n\n```\nb = c\n  d\n```\n\nsee `e`\n\n| f | g |\n| --- | --- |\n| 1 | 23 |'


def test_sections():
    title, description, named = upsampler_pages.sections(SAPA.__doc__)
    assert title.startswith('Similarity-aware') and description.startswith('With ``y`` the guide')
    assert set(named) == {'Args', 'Raises', 'Cost', 'Source'}
    assert named['Source'] == 'https://arxiv.org/abs/2209.12866'
