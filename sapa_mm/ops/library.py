# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled operators, once, says why where it cannot, and chooses who serves a call."""

import contextlib
import importlib.util
import os

import torch

from . import triton

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


def _load() -> str | None:
    """Load the library; return why it is not there, or None."""
    if os.environ.get('SAPA_MM_WITH_OPS') == '0':  # so that one installation can be tested with and without
        return 'SAPA_MM_WITH_OPS=0 sets the compiled operators aside'
    if torch_is_too_old:
        return f'the compiled operators need torch 2.1 or newer, this is {torch.__version__}'
    spec = importlib.util.find_spec('sapa_mm._C')
    if spec is None:
        return 'the package was installed without its compiled operators'
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:  # built for another torch, or a missing shared library
        return f'{spec.origin} cannot be loaded: {error}'
    missing = [name for name in (*OPERATORS, 'cpu_capability') if not hasattr(torch.ops.sapa_mm, name)]
    if missing:
        return f'{spec.origin} is older than this package, it lacks {", ".join(missing)}'
    return None


#: Why the reference runs instead of the compiled operators; None where they are loaded.
unavailable_reason = _load()


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


def runs_native(operator: str, x: torch.Tensor) -> bool:
    """Whether the compiled operator serves tensors like ``x``; the reference serves all other devices, and ONNX."""
    is_served = isinstance(x, torch.Tensor) and x.device.type in native_devices[operator]
    return _first <= 1 and is_served and not torch.onnx.is_in_onnx_export()


def choose(operator: str, x: torch.Tensor, *others) -> str:
    """Who serves a call: ``'triton'``, ``'cuda'`` or ``'cpu'`` (the compiled operator of that device), ``'reference'``.

    ``others`` are what the operator's rule in :mod:`sapa_mm.ops.triton` asks for beside ``x``, or nothing.
    """
    if _first == 0 and not torch.onnx.is_in_onnx_export() and triton.fits(operator, x, *others):
        return 'triton'
    return x.device.type if runs_native(operator, x) else 'reference'


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
    return choose(operator, x, *others)
