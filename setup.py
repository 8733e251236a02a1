# SPDX-License-Identifier: Apache-2.0
"""Builds the optional native ops and fills ``sapa_mm/.mim``; the metadata is in pyproject.toml.

Environment variables:
    SAPA_MM_WITH_OPS=0    install without native ops (the plain torch reference serves, and the package does not warn
                          of it; when importing the package it sets aside those that are installed)
    SAPA_MM_LOCAL_VERSION what to add to the version, such as pt2.13cpu: names the torch of a wheel (docs/release.md)
    FORCE_CUDA=1 | 0      build the CUDA kernels without asking what torch is, or leave them out
    TORCH_CUDA_ARCH_LIST  architectures of the CUDA kernels (default below)
    DEBUG=1               no optimisation, debug symbols
    SANITIZE=1            AddressSanitizer and UBSan in the CPU operators (make test-sanitized)
    MAX_JOBS              compiler processes at a time (read by torch)
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CUDA_ARCHS = '7.5;8.0;8.6;8.9;9.0+PTX'
ABI = 'cp310'  # the oldest Python the one library serves: Py_LIMITED_API below says the same
REFERENCE = 'installing without native ops, the plain torch reference serves'


def say(message):
    # stderr, because pip shows a build's standard output only with -v and a failing one loses its tail otherwise
    print(f'[sapa_mm] {message}', file=sys.stderr, flush=True)


def toolkit_fits(home, version):
    """Whether nvcc is of torch's major version of CUDA; torch refuses any other, and the CPU's operators with it."""
    try:
        found = subprocess.run([Path(home, 'bin', 'nvcc'), '--version'], capture_output=True, text=True).stdout
    except OSError as error:
        say(f'no CUDA kernels: {error}')
        return False
    release = re.search(r'release (\d+)', found)
    if release and release[1] == version.split('.')[0]:
        return True
    say(f'no CUDA kernels: torch was built with CUDA {version}, {home} has {release[0] if release else "no nvcc"}')
    return False


def native_extension():
    """The one extension and its build command, or ``(None, None)`` and a line that says why not."""
    if os.environ.get('SAPA_MM_WITH_OPS', '1') == '0':
        return say(f'SAPA_MM_WITH_OPS=0: {REFERENCE}'), None
    sources = sorted(glob('ops/*.cpp') + glob('ops/cpu/**/*.cpp', recursive=True))
    cuda_sources = sorted(glob('ops/cuda/*.cu'))
    if not sources:
        return say(f'no C++ sources in ops/: {REFERENCE}'), None
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        return say(f'torch cannot be imported here ({error}): {REFERENCE}. Use pip --no-build-isolation'), None

    force = os.environ.get('FORCE_CUDA')
    cuda = bool(cuda_sources) and force != '0'
    if cuda and force != '1':
        cuda = bool(torch.version.cuda and CUDA_HOME) and toolkit_fits(CUDA_HOME, torch.version.cuda)
    debug = os.environ.get('DEBUG', '0') == '1'
    windows = os.name == 'nt'
    # torch adds the C++ standard its headers need. at::parallel_for is a template: without OpenMP it runs serially. The
    # library is not linked with OpenMP: torch brings its own, and a second one would be a second pool of threads.
    flags = (['/Od', '/Zi'] if debug else ['/O2']) if windows else (['-O0', '-g'] if debug else ['-O3', '-g0'])
    openmp = []
    if torch.backends.openmp.is_available() and sys.platform != 'darwin':
        openmp = ['/openmp' if windows else '-fopenmp']
    sanitize = []
    if os.environ.get('SANITIZE', '0') == '1':
        sanitize = ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined', '-fno-omit-frame-pointer']
        # checks as calls of GCC's library, not inline: the unrolled loops compile in half a minute instead of ten
        flags = ['-O1', '-g', '--param', 'asan-instrumentation-with-call-threshold=0']
    arguments = dict(
        include_dirs=[str(Path('ops').resolve())],
        define_macros=[('Py_LIMITED_API', '0x030A0000')],
        extra_link_args=sanitize,
        extra_compile_args=dict(cxx=flags + openmp + sanitize, nvcc=['-O0', '-G'] if debug else ['-O3', '-lineinfo']),
        py_limited_api=True,
    )
    if cuda:
        archs = os.environ.setdefault('TORCH_CUDA_ARCH_LIST', CUDA_ARCHS)
        sources += cuda_sources
        arguments['define_macros'].append(('SAPA_MM_WITH_CUDA', None))
    try:
        extension = (CUDAExtension if cuda else CppExtension)('sapa_mm._C', sources, **arguments)
    except Exception as error:  # for example FORCE_CUDA=1 without a toolkit: an OSError
        return say(f'cannot prepare the native ops ({error}): {REFERENCE}'), None
    say(
        f'native ops: {len(sources)} sources, torch {torch.__version__}, '
        + (f'CUDA {CUDA_HOME} for {archs}' if cuda else 'CPU only')
        + (', debug' if debug else '')
        + (', sanitized' if sanitize else '')
    )
    return extension, BuildExtension


EXTENSION, BUILD_EXTENSION = native_extension()


class OptionalBuildExt(BUILD_EXTENSION or build_ext):
    """A build that fails says so and lets the installation go on, with a wheel that is tagged as what it is: pure."""

    def run(self):
        try:
            super().run()
        except Exception as error:  # no compiler, a CUDA mismatch, a compile error: the reference serves
            say(f'THE NATIVE OPS WERE NOT BUILT: {type(error).__name__}: {error}')
            say(f'{REFERENCE}; pip install -v shows the compiler output')
            wheel = self.distribution.get_command_obj('bdist_wheel', create=False)
            if wheel and not self.editable_mode:
                wheel.root_is_pure = True
                self.distribution.ext_modules = []


class BuildPyWithMim(build_py):
    """Puts configs, tools and the model index where ``mim`` looks: sapa_mm/.mim.

    A wheel gets copies in its build folder, so that the source tree stays clean; an editable install gets links. What
    only maintainers run, tools/dev, stays out of the wheel.
    """

    def run(self):
        root = Path(__file__).resolve().parent
        package = (root if self.editable_mode else Path(self.build_lib).resolve()) / 'sapa_mm'
        if self.editable_mode:
            for stale in package.glob('_C.*'):  # if the build that follows fails, the reference has to serve
                stale.unlink()
        elif package != root / 'sapa_mm':  # a library, a module or a config of an earlier build would be packed
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        if os.environ.get('SAPA_MM_WITH_OPS') == '0':
            (package / '_C.left_out').write_text('Built with SAPA_MM_WITH_OPS=0: do not warn that _C is missing.\n')
        target = package / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            source, destination = root / name, target / name
            if not source.exists():
                continue
            if self.editable_mode:
                destination.symlink_to(os.path.relpath(source, target))
            elif source.is_dir():
                shutil.copytree(source, destination, ignore=shutil.ignore_patterns('__pycache__', 'dev'))
            else:
                shutil.copy2(source, destination)


def readme():
    """README.md with absolute links: a package index shows it without the files beside it."""
    root = Path(__file__).resolve().parent
    url = re.search(r'^Repository = "(.+)"$', (root / 'pyproject.toml').read_text(), re.MULTILINE)[1]
    text = (root / 'README.md').read_text()
    text = re.sub(r'(!\[[^]]*\]\()(?!https?:)', rf'\1{url}/raw/main/', text)
    return re.sub(r'(?<!!)(\[[^]]*\]\()(?!https?:|#)', rf'\1{url}/blob/main/', text)


def version():
    """The version of the package, with the local part that names the torch of a wheel (docs/release.md)."""
    text = (Path(__file__).resolve().parent / 'sapa_mm' / '__init__.py').read_text()
    local = os.environ.get('SAPA_MM_LOCAL_VERSION')
    return re.search("^__version__ = '(.+)'$", text, re.MULTILINE)[1] + (f'+{local}' if local else '')


setup(
    version=version(),
    license='Apache-2.0',
    long_description=readme(),
    long_description_content_type='text/markdown',
    ext_modules=[EXTENSION] if EXTENSION else [],
    cmdclass=dict(build_ext=OptionalBuildExt, build_py=BuildPyWithMim),
    options=dict(bdist_wheel=dict(py_limited_api=ABI)) if EXTENSION else {},
)
