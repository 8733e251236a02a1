# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled operators, once, and says why where it cannot."""

import importlib.util
import os

import torch

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


def runs_native(operator: str, x: torch.Tensor) -> bool:
    """Whether the compiled operator serves tensors like ``x``; the reference serves all other devices, and ONNX."""
    return (
        isinstance(x, torch.Tensor) and x.device.type in native_devices[operator] and not torch.onnx.is_in_onnx_export()
    )


def backend() -> str:
    """Which implementation serves the operators: ``'native'`` (compiled) or ``'reference'`` (plain torch)."""
    return 'reference' if unavailable_reason else 'native'
