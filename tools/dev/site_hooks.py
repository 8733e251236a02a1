# SPDX-License-Identifier: Apache-2.0
"""Hooks of the site: links that leave docs/ go to the repository."""

import os
import re

LINK = re.compile(r'(!?\[[^]]*\]\()(\.\.?/[^)\s]+)(\))')


def on_page_markdown(markdown, page, config, files):
    """Pages are read in the repository too, where they link to configs, tools and tests beside docs/."""
    folder = os.path.join(config.docs_dir, os.path.dirname(page.file.src_uri))
    root = os.path.dirname(config.config_file_path)

    def absolute(match):
        path = os.path.normpath(os.path.join(folder, match[2].partition('#')[0]))
        if path.startswith(config.docs_dir + os.sep) or not os.path.exists(path):
            return match[0]
        return f'{match[1]}{config.repo_url}/blob/main/{os.path.relpath(path, root)}{match[3]}'

    return LINK.sub(absolute, markdown)
