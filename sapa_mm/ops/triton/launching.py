# SPDX-License-Identifier: Apache-2.0
"""Around the launches: layouts, room for results, the device."""

import contextlib

import torch
import triton
from torch import Tensor

from ..maps import memory_format


def dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=memory_format(x))


def empty_following(x: Tensor, shape, dtype: torch.dtype | None = None) -> Tensor:
    """For a result that has the layout of ``x``."""
    layout = memory_format(x) if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def on_device_of(x: Tensor):
    """Triton launches on the current device; on a CPU it only interprets."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def block(channels: int, largest: int) -> int:
    """Channels of a tile: a power of two that tensor cores can take."""
    return max(16, min(largest, triton.next_power_of_2(channels)))
