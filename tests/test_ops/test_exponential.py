# SPDX-License-Identifier: Apache-2.0
"""The exponential of the CPU operators, compiled alone, against long double."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name('exponential.cpp')
FLAGS = {'plain': ['-DSAPA_MM_VECTOR_BYTES=16'], 'avx2': ['-mavx2', '-mfma', '-DSAPA_MM_VECTOR_BYTES=32']}


@pytest.mark.parametrize('level', FLAGS)
def test_error_in_ulp(level, tmp_path):
    """About 1 ulp from -87.3 to 88.7 for every 997th float; 0 below, infinite above, NaN for NaN."""
    compiler = shutil.which(os.environ.get('CXX', 'c++'))
    if compiler is None:
        pytest.skip('no C++ compiler')
    cpuinfo = Path('/proc/cpuinfo')
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    if level == 'avx2' and (platform.machine() != 'x86_64' or not {'avx2', 'fma'} <= set(flags)):
        pytest.skip('no AVX2 here')
    program = tmp_path / 'exponential'
    command = [compiler, '-std=c++20', '-O3', *FLAGS[level], str(SOURCE), '-o', str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    error, at, wrong = subprocess.check_output([str(program), '997'], text=True).split()
    assert int(wrong) == 0
    assert 0 < float(error) < 1.1, f'{error} ulp at {at}'
