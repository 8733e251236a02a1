# SPDX-License-Identifier: Apache-2.0
"""``python -m sapa_mm.doctor``: what is installed, which operators run, what is missing and what mends it.

``--report`` prints the same as Markdown, with the machine and the settings that matter: a block for a bug report.
"""

import argparse
import getpass
import os
import platform
import re
import shutil
import socket
import sys
from importlib import import_module, metadata

import sapa_mm

REBUILD = (
    'pip install -r requirements/build.txt && '
    '{cuda}pip install --no-build-isolation --force-reinstall --no-deps -e . (in the source tree; needs {needs})'
)
# import name: (its distribution in each stack; what it is for)
STACK = {
    'mmengine': (dict(onedl='onedl-mmengine', classic='mmengine'), 'registered types, configs, training'),
    'mmcv': (dict(onedl='onedl-mmcv', classic='mmcv'), 'mmsegmentation and mmdetection'),
    'mmseg': (dict(onedl='onedl-mmsegmentation', classic='mmsegmentation'), 'segmentation models'),
    'mmdet': (dict(onedl='onedl-mmdetection', classic='mmdet'), 'detection models, Mask2Former'),
}
# mmsegmentation and mmdetection of the classic stack refuse an mmcv of 2.2 and newer.
VERSIONS = dict(mmcv='>=2.0.0,<2.2.0')
# the order matters: with build isolation off, pip needs these to compile mmcv's ops against the installed torch
MMCV_OPS = (
    "pip install 'setuptools<82' wheel ninja packaging && "
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps {requirement}'
)
# All of them write into one folder, cv2.
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')
#: Variables that change what runs, or how it is built.
VARIABLES = re.compile(
    'SAPA_MM_|OMP_|KMP_|MKL_|CUDA_|TRITON_|PYTORCH_|(ATEN_CPU_CAPABILITY|FORCE_CUDA|TORCH_CUDA_ARCH_LIST|CXX|LD_PRELOAD)$'
)
#: Of what torch.utils.collect_env finds.
MACHINE = dict(
    os='OS', python_platform='platform', libc_version='libc', gcc_version='GCC', clang_version='Clang',
    cuda_runtime_version='CUDA toolkit', nvidia_driver_version='GPU driver', nvidia_gpu_models='GPU',
    cudnn_version='cuDNN',
)  # fmt: skip


def installed(distribution: str) -> str | None:
    """The version of ``distribution``, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def used_stack() -> str:
    """``'onedl'`` or ``'classic'``: whose distributions are here; where none is, the one that serves this torch."""
    counts = {
        stack: sum(installed(names[stack]) is not None for names, _ in STACK.values()) for stack in ('onedl', 'classic')
    }
    if counts['onedl'] != counts['classic']:
        return max(counts, key=counts.get)
    # onedl-mmcv asks for torch 2.4
    version = re.match(r'(\d+)\.(\d+)', installed('torch') or '')
    return 'classic' if version and tuple(map(int, version.groups())) < (2, 4) else 'onedl'


def requirement(distribution: str) -> str:
    """What to hand pip."""
    version = VERSIONS.get(distribution)
    return f"'{distribution}{version}'" if version else distribution


def operators() -> tuple[str, str, str, str]:
    """The row of the compiled operators."""
    import torch

    # a failure of these imports is the package's own: it goes up to main
    from sapa_mm.ops import backend
    from sapa_mm.ops.library import native_devices, torch_is_too_old, unavailable_reason

    if unavailable_reason:
        found, remedy = f'{backend()} operators: {unavailable_reason}', rebuild()
        return 'sapa_mm.ops', 'missing', found, "pip install 'torch>=2.1'" if torch_is_too_old else remedy
    devices = native_devices['point_affiliation']
    wanted = os.environ.get('ATEN_CPU_CAPABILITY')
    instructions = torch.ops.sapa_mm.cpu_capability() + (f', ATEN_CPU_CAPABILITY={wanted}' if wanted else '')
    found = f'{backend()} operators for ' + ' and '.join(devices).replace('cpu', f'cpu ({instructions})')
    if torch.cuda.is_available() and 'cuda' not in devices:
        found += ': built without CUDA kernels: the reference runs on the GPU'
        return 'sapa_mm.ops', 'missing', found, rebuild(cuda=torch.version.cuda)
    return 'sapa_mm.ops', 'ok', found, ''


def triton() -> tuple[str, str, str, str]:
    """The row of Triton, which serves half and bfloat16 on GPUs."""
    import torch

    from sapa_mm.ops.triton import is_there

    version, purpose = installed('triton'), 'float16 and bfloat16 on GPUs of sm_80 and newer'
    if is_there:
        return 'triton', 'ok', f'{version}, for {purpose}', ''
    found = f'{version or "not installed"}; 3.6 or newer would serve {purpose}'
    if torch.cuda.is_available():
        return 'triton', 'missing', found, "pip install 'triton>=3.6'"
    return 'triton', 'unused', found, ''


def backends() -> tuple[str, str, str, str]:
    """The row of what serves ``point_affiliation`` on each device here."""
    import torch

    from sapa_mm.ops import backend
    from sapa_mm.ops.library import BACKENDS

    served = [('cpu', torch.float32)]
    if torch.cuda.is_available():
        served += [('cuda', torch.float32), ('cuda', torch.bfloat16)]
    found = ', '.join(
        f'{device} {str(dtype).removeprefix("torch.")}: {backend(torch.empty(1, 8, 8, 8, dtype=dtype, device=device))}'
        for device, dtype in served
    )
    chosen = os.environ.get('SAPA_MM_BACKEND')
    asked = f'SAPA_MM_BACKEND={chosen}' if chosen else f'SAPA_MM_BACKEND can be {", ".join(BACKENDS)}'
    return 'backends', 'ok', f'{found} ({asked})', ''


def rebuild(cuda: str | None = None) -> str:
    """The command that builds the operators here, for the GPU too if ``cuda`` names its version, and what it needs."""
    compiler = os.environ.get('CXX', 'c++')
    needs = 'a C++ compiler' + ('' if shutil.which(compiler) else f': {compiler} is not on the PATH')
    return REBUILD.format(
        cuda='FORCE_CUDA=1 ' if cuda else '', needs=f'{needs}, and nvcc of CUDA {cuda}' if cuda else needs
    )


def attempt(module: str) -> str | None:
    """Import ``module``; return None, or the reason why it cannot be imported."""
    try:
        import_module(module)
    except Exception as error:  # a broken installation raises anything, from OSError to AssertionError
        return f'{type(error).__name__}: {str(error).strip() or "no message"}'.splitlines()[0]
    return None


def opencv() -> list[tuple[str, str, str, str]]:
    """The row of OpenCV, which the toolboxes bring along; none where none is installed.

    Some of what they need asks for two of its distributions. Of one version, their files are the same but for the
    window system; of two, what is imported is a mixture.
    """
    versions = {name: installed(name) for name in OPENCV if installed(name)}
    if not versions:
        return []
    found = ' and '.join(f'{name} {version}' for name, version in versions.items())
    error = attempt('cv2')
    if not error and len(set(versions.values())) == 1:
        return [('opencv', 'ok', found + (', files of the last installed' if len(versions) > 1 else ''), '')]
    name, version = list(versions.items())[0]
    if error and 'lib' in error and not name.endswith('-headless'):  # of the display, such as libGL.so.1
        name += '-headless'
        version = versions.get(name, version)
    found += f' ({error})' if error else ', one over the other'
    remedy = f'pip uninstall -y {" ".join(versions)} && pip install --no-deps {name}=={version}'
    return [('opencv', 'broken', found, remedy)]


def examine() -> list[tuple[str, str, str, str]]:
    """One row a component: name, state, what was found, what mends it.

    The state is ``'ok'``, ``'unused'`` (missing, and not needed here), ``'missing'`` or ``'broken'``.
    """
    rows = [
        ('python', 'ok', f'{platform.python_version()} ({platform.machine()}), {sys.executable}', ''),
        ('sapa_mm', 'ok', f'{sapa_mm.__version__}, {os.path.dirname(sapa_mm.__file__)}', ''),
    ]
    error = attempt('torch')
    if error:
        return [*rows, ('torch', 'missing', error, 'pip install torch')]
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU in use'
    rows.append(('torch', 'ok', f'{torch.__version__}, CUDA {torch.version.cuda or "none"}, {gpu}', ''))

    rows += [operators(), triton(), backends()]

    stack = used_stack()
    for module, (distributions, purpose) in STACK.items():
        error, name = attempt(module), distributions[stack]
        version = installed(name)
        found = f'{name} {version}' if version else f'not installed; for {purpose}'
        if not error:
            rows.append((module, 'ok', found if version else module, ''))
        else:
            found = f'{found} ({error})' if version else found
            rows.append((module, 'broken' if version else 'missing', found, f'pip install {requirement(name)}'))
        if module == 'mmcv' and not error:
            error = attempt('mmcv._ext')
            found = 'compiled' if not error else f'not compiled, mmdetection needs them ({error})'
            # the version that is here, compiled
            wanted = f'{name}=={version}' if version else requirement(name)
            remedy = MMCV_OPS.format(requirement=wanted) if error else ''
            rows.append(('mmcv.ops', 'missing' if error else 'ok', found, remedy))
    rows += opencv()
    if not attempt('mmengine'):
        # a type that cannot be built here says why when it is built; registering is what must work
        error = attempt('sapa_mm.registry')
        if error:
            raise ImportError(error)
    return rows


def show(rows: list[tuple[str, str, str, str]]) -> None:
    """Print the table, then each remedy on a line of its own, whole, to be copied."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # rich comes with mmengine
        for name, state, found, _ in rows:
            print(f'{name:12} {state:8} {found}')
    else:
        table = Table('', 'state', 'found', title='sapa_mm')
        colours = dict(ok='green', unused='white', missing='yellow', broken='red')
        for name, state, found, _ in rows:
            table.add_row(name, f'[{colours[state]}]{state}', escape(found))
        Console().print(table)
    remedies = [(name, remedy) for name, _, _, remedy in rows if remedy]
    for name, remedy in remedies:
        print(f'{name}: {remedy}')
    if not remedies:
        print('Everything is there.')


def machine() -> dict[str, str]:
    """What torch finds of the machine: system, compilers, GPU; empty without torch."""
    try:
        from torch.utils.collect_env import get_env_info

        found = get_env_info()._asdict()
    except Exception:  # it asks a dozen programs, and none of them is needed here
        return {}
    facts = {label: found.get(name) for name, label in MACHINE.items()}
    model = re.search(r'Model name:\s*(.+)', str(found.get('cpu_info')))
    facts['CPU'] = f'{model[1]}, {os.cpu_count()} cores' if model else None
    return {label: str(fact) for label, fact in facts.items() if fact and fact not in ('N/A', 'Could not collect')}


def private(text: str) -> str:
    """``text`` without the home folder, the user's name and the machine's."""
    homes = {os.path.expanduser('~'), os.path.realpath(os.path.expanduser('~'))} - {'', '~', os.sep}
    for home in sorted(homes, key=len, reverse=True):
        text = re.sub(rf'(?<![\w.~-]){re.escape(home)}(?![\w.-])', '~', text)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = ''
    for name, stand_in in ((user, '<user>'), (socket.gethostname(), '<host>')):
        if name not in ('', 'root'):  # as part of a path, or after an @: a word of the text may be the same
            text = re.sub(rf'(?<=[/\\@]){re.escape(name)}(?![\w-])', stand_in, text)
    return text


def report(rows: list[tuple[str, str, str, str]]) -> str:
    """Markdown for a bug report: the table, the machine, the environment, and how torch was built."""

    def table(header, lines):
        rule = ['---'] * len(header)
        cells = ([cell.replace('|', '\\|').replace('\n', ' ') for cell in line] for line in (header, rule, *lines))
        return [f'| {" | ".join(line)} |' for line in cells]

    lines = table(('', 'state', 'found'), [row[:3] for row in rows])
    facts = [
        *machine().items(),
        *((f'`{name}`', os.environ[name]) for name in sorted(os.environ) if VARIABLES.match(name)),
    ]
    if facts:
        lines += ['', *table(('machine and environment', ''), facts)]
    if not attempt('torch'):
        import torch

        built = torch.__config__.show().strip().splitlines()
        lines += ['', '<details><summary>How torch was built</summary>', '', '```', *built, '```', '', '</details>']
    return private('\n'.join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Print the report; 0 unless this package itself is broken."""
    parser = argparse.ArgumentParser(prog='python -m sapa_mm.doctor', description=__doc__.splitlines()[0])
    parser.add_argument('--report', action='store_true', help='print Markdown for a bug report, without private names')
    args = parser.parse_args(arguments)
    try:
        if args.report:
            print(report(examine()))
        else:
            show(examine())
    except Exception as error:
        print(f'sapa_mm itself cannot be imported: {type(error).__name__}: {error}', file=sys.stderr)
        if 'SAPA_MM_BACKEND' not in str(error):  # which no build mends
            print(rebuild(), file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
