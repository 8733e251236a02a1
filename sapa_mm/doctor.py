# SPDX-License-Identifier: Apache-2.0
"""``python -m sapa_mm.doctor``: what is installed, which operators run, what is missing and what mends it."""

import os
import platform
import sys
from importlib import import_module, metadata

import sapa_mm

REBUILD = 'pip install --no-build-isolation --force-reinstall --no-deps -e . (in the source tree; needs a C++ compiler)'
# import name: (distributions that bring it, the maintained one first; what it is for)
STACK = {
    'mmengine': (('onedl-mmengine', 'mmengine'), 'registered types, configs, training'),
    'mmcv': (('onedl-mmcv', 'mmcv'), 'mmsegmentation and mmdetection'),
    'mmseg': (('onedl-mmsegmentation', 'mmsegmentation'), 'segmentation models'),
    'mmdet': (('onedl-mmdetection', 'mmdet'), 'detection models, Mask2Former'),
}
# the order matters: with build isolation off, pip needs these to compile mmcv's ops against the installed torch
MMCV_OPS = (
    "pip install 'setuptools<82' wheel ninja packaging && "
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps {distribution}'
)


def installed(distributions: tuple[str, ...]) -> tuple[str, str] | None:
    """The first of ``distributions`` that is installed and its version."""
    for name in distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def attempt(module: str) -> str | None:
    """Import ``module``; return None, or the reason why it cannot be imported."""
    try:
        import_module(module)
    except Exception as error:  # a broken installation raises anything, from OSError to AssertionError
        return f'{type(error).__name__}: {str(error).strip() or "no message"}'.splitlines()[0]
    return None


def examine() -> list[tuple[str, str, str, str]]:
    """One row a component: name, state (``'ok'``, ``'missing'``, ``'broken'``), what was found, what mends it."""
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

    # a failure of this import is the package's own: it goes up to main
    from sapa_mm.ops import backend
    from sapa_mm.ops.library import native_devices, unavailable_reason

    reason = unavailable_reason
    if not reason and torch.cuda.is_available() and 'cuda' not in native_devices:
        reason = 'built without CUDA kernels: the reference runs on the GPU'
    found = ' for '.join(filter(None, (f'{backend()} operators', ' and '.join(native_devices))))
    found += f': {reason}' if reason else ''
    rows.append(('sapa_mm.ops', 'missing' if reason else 'ok', found, REBUILD if reason else ''))

    for module, (distributions, purpose) in STACK.items():
        error, package = attempt(module), installed(distributions)
        name = package[0] if package else distributions[0]
        found = f'{name} {package[1]}' if package else f'not installed; for {purpose}'
        if not error:
            rows.append((module, 'ok', found, ''))
        else:
            found = f'{found} ({error})' if package else found
            rows.append((module, 'broken' if package else 'missing', found, f'pip install {name}'))
        if module == 'mmcv' and not error:
            error = attempt('mmcv._ext')
            found = 'compiled' if not error else f'not compiled, mmdetection needs them ({error})'
            rows.append(
                ('mmcv.ops', 'missing' if error else 'ok', found, MMCV_OPS.format(distribution=name) if error else '')
            )
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
        colours = dict(ok='green', missing='yellow', broken='red')
        for name, state, found, _ in rows:
            table.add_row(name, f'[{colours[state]}]{state}', escape(found))
        Console().print(table)
    remedies = [(name, remedy) for name, _, _, remedy in rows if remedy]
    for name, remedy in remedies:
        print(f'{name}: {remedy}')
    if not remedies:
        print('Everything is there.')


def main() -> int:
    """Print the report; 0 unless this package itself is broken."""
    try:
        show(examine())
    except Exception as error:
        print(f'sapa_mm itself cannot be imported: {type(error).__name__}: {error}', file=sys.stderr)
        print(REBUILD, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
