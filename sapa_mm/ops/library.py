# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled operators, once, says why where it cannot, and chooses who serves a call."""

import contextlib
import importlib.util
import os
import warnings
from functools import cache
from pathlib import Path

import torch

from . import triton
from .sizes import is_compiling

OPERATORS = (
    'point_affiliation',
    'feature_assembly',
    'deformable_scores',
    'deformable_assembly',
    'channel_norm',
    'norm_projection',
)

#: Nothing older was tried; pip refuses it too.
torch_is_too_old = tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 1)

#: setup.py writes it where it was told to build without the operators.
_left_out = Path(__file__).parents[1] / '_C.left_out'


def _load() -> str | None:
    """Load the library; return why it is not there, or None."""
    if os.environ.get('SAPA_MM_WITH_OPS') == '0':  # so that one installation can be tested with and without
        return 'SAPA_MM_WITH_OPS=0 sets the compiled operators aside'
    if torch_is_too_old:
        return f'the compiled operators need torch 2.1 or newer, this is {torch.__version__}'
    spec = importlib.util.find_spec('sapa_mm._C')
    if spec is None:
        how = ', as SAPA_MM_WITH_OPS=0 asked' if _left_out.exists() else ''
        return f'the package was installed without its compiled operators{how}'
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:  # built for another torch, or a missing shared library
        return f'{spec.origin} cannot be loaded: {error}'
    missing = [name for name in (*OPERATORS, 'cpu_capability', 'built_for') if not hasattr(torch.ops.sapa_mm, name)]
    if missing:
        return f'{spec.origin} is older than this package, it lacks {", ".join(missing)}'
    wanted, here = torch.ops.sapa_mm.built_for(), '.'.join(torch.__version__.split('.')[:2])
    if wanted != here:  # it was loaded, and may read the objects of this torch wrongly
        return f'{spec.origin} was built for torch {wanted}, this is {torch.__version__}'
    return None


#: Why the reference runs instead of the compiled operators; None where they are loaded.
unavailable_reason = _load()

#: Whether somebody decided that the reference runs, so that nobody needs to hear of it.
is_on_purpose = os.environ.get('SAPA_MM_WITH_OPS') == '0' or _left_out.exists()


def is_loaded() -> bool:
    """Whether the compiled operators are there."""
    return unavailable_reason is None


#: Operator -> device types that the library was built for: ``'cpu'``, ``'cuda'`` or both; empty where it is not loaded.
native_devices = {
    name: tuple(
        device
        for device in ('cpu', 'cuda')
        if is_loaded() and torch._C._dispatch_has_kernel_for_dispatch_key(f'sapa_mm::{name}', device.upper())
    )
    for name in OPERATORS
}


#: Who may serve an operator, in the order in which they are asked: Triton's kernels, the compiled operators (those for
#: the CPU too), plain torch. ``SAPA_MM_BACKEND`` names the first to ask, when the package is imported.
BACKENDS = ('triton', 'cuda', 'reference')


def _rank(name: str) -> int:
    if name not in BACKENDS:
        raise ValueError(f'SAPA_MM_BACKEND must be one of {BACKENDS}, got {name!r}')
    return BACKENDS.index(name)


_first = _rank(os.environ.get('SAPA_MM_BACKEND') or BACKENDS[0])


@contextlib.contextmanager
def prefer(name: str):
    """Inside it, ask ``name`` first, as ``SAPA_MM_BACKEND`` would."""
    global _first
    before, _first = _first, _rank(name)
    try:
        yield
    finally:
        _first = before


def _is_served(operator: str, x: torch.Tensor) -> bool:
    is_there = isinstance(x, torch.Tensor) and x.device.type in native_devices[operator]
    return _first <= 1 and is_there and not torch.onnx.is_in_onnx_export()


def _choose(operator: str, x: torch.Tensor, *others) -> str:
    if _first == 0 and not torch.onnx.is_in_onnx_export() and triton.fits(operator, x, *others):
        return 'triton'
    return x.device.type if _is_served(operator, x) else 'reference'


def runs_native(operator: str, x: torch.Tensor) -> bool:
    """Whether the compiled operator serves tensors like ``x``; the reference serves all other devices, and ONNX.

    Asked when an operator is used, so it says once that the library is missing.
    """
    native = _is_served(operator, x)
    if not native:
        _say_what_is_missing()
    return native


def choose(operator: str, x: torch.Tensor, *others) -> str:
    """Who serves a call: ``'triton'``, ``'cuda'`` or ``'cpu'`` (the compiled operator of that device), ``'reference'``.

    ``others`` are what the operator's rule in :mod:`sapa_mm.ops.triton` asks for beside ``x``, or nothing. As
    :func:`runs_native`, it says once that the library is missing.
    """
    chosen = _choose(operator, x, *others)
    if chosen == 'reference':
        _say_what_is_missing()
    return chosen


def _say_what_is_missing() -> None:
    """Warn once that plain torch runs for want of the library, unless somebody wants it so."""
    if is_loaded() or is_on_purpose or _first > 1 or is_compiling() or torch.onnx.is_in_onnx_export():
        return
    _warn_once()


@cache
def _warn_once() -> None:
    warnings.warn(
        f'sapa_mm computes in plain torch, which is slower and takes more memory: {unavailable_reason}. '
        '`python -m sapa_mm.doctor` says what mends it; SAPA_MM_WITH_OPS=0 leaves it so, without this warning.',
        stacklevel=4,
    )


def backend(x: torch.Tensor | None = None, *others, operator: str = 'point_affiliation') -> str:
    """Which implementation serves the operators.

    Args:
        x: The query of :func:`~sapa_mm.ops.point_affiliation` or the first map of another ``operator``. Without it the
            answer is for the package.
        others: Of ``point_affiliation``: the key, ``kernel_size`` and ``border``. Left out, they count as ones that
            Triton serves.
        operator: Name of the operator.

    Returns:
        Without ``x``: ``'native'`` (compiled) or ``'reference'`` (plain torch). With it: ``'triton'``, ``'cuda'``,
        ``'cpu'`` (the compiled operator of that device) or ``'reference'``.

    Raises:
        ValueError: If there is no such operator.
    """
    if x is None:
        return 'reference' if unavailable_reason else 'native'
    if operator not in OPERATORS:
        raise ValueError(f'operator must be one of {OPERATORS}, got {operator!r}')
    return _choose(operator, x, *others)
