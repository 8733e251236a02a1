# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

import sapa_mm

# Processes that tests start import the package that is tested here, be it the checkout or an installed copy.
HOME = str(Path(sapa_mm.__file__).parents[1])
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (HOME, os.environ.get('PYTHONPATH'))))


def pytest_report_header():
    import torch

    from sapa_mm.ops import backend

    return f'sapa_mm: {backend()} operators, torch {torch.__version__}, imported from {HOME}'


@pytest.fixture(scope='session')
def start():
    """Start processes of a tool, see ``tool_helpers.tool_server``."""
    from tool_helpers import tool_server

    with tool_server() as start:
        yield start
