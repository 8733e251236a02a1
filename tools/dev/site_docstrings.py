# SPDX-License-Identifier: Apache-2.0
"""Docstrings for the API pages: what they have of reStructuredText (tables, roles, literal blocks) becomes Markdown."""

import sys
from pathlib import Path

from griffe import Extension

sys.path.insert(0, str(Path(__file__).parent))

from upsampler_pages import markdown


class MarkdownDocstrings(Extension):
    """Rewrites every docstring once it is read."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
