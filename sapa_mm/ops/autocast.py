# SPDX-License-Identifier: Apache-2.0
"""One decision about autocast for all operators."""

import functools

import torch
from torch import Tensor

# torch 2.4 gave the autocast queries a device argument; before it, only these two devices had autocast at all.
if hasattr(torch, 'get_autocast_dtype'):
    _is_enabled, _dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
else:

    def _is_enabled(device: str) -> bool:
        return torch.is_autocast_cpu_enabled() if device == 'cpu' else torch.is_autocast_enabled()

    def _dtype(device: str) -> torch.dtype:
        return torch.get_autocast_cpu_dtype() if device == 'cpu' else torch.get_autocast_gpu_dtype()


# Before torch 2.6, inductor hands operators maps of other strides than their fake kernels were told, and results come
# out wrong. There torch.compile leaves the operators out of its graphs.
CAN_COMPILE = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def autocast_inputs(function):
    """Inside autocast, cast the maps (but float64 ones) to its dtype and run with autocast off.

    Maps are the arguments of four dimensions; a norm's parameters stay as they are. The operators accumulate in
    float32, so the low dtype costs them no range and one rounding of the result, and casting all maps alike spares
    callers the ``expected scalar type Half but found Float`` of mixed ones.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        # no `next` with a default: torch 2.1 cannot compile it
        devices = [a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if not devices or devices[0] not in ('cpu', 'cuda') or not _is_enabled(devices[0]):
            return function(*args, **kwargs)
        device = devices[0]
        dtype = _dtype(device)

        def cast(x):
            is_map = isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype) if is_map else x

        with torch.autocast(device, enabled=False):
            return function(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return wrapper if CAN_COMPILE else torch.compiler.disable(wrapper)


def outside_autocast(forward):
    """Of a module that takes a list of maps first: run it with autocast off, maps of half precision as float32."""

    @functools.wraps(forward)
    def wrapper(self, maps, *args, **kwargs):
        device = maps[0].device.type
        if device not in ('cpu', 'cuda') or not _is_enabled(device):
            return forward(self, maps, *args, **kwargs)
        maps = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in maps]
        with torch.autocast(device, enabled=False):
            return forward(self, maps, *args, **kwargs)

    return wrapper
