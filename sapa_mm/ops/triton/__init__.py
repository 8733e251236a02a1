# SPDX-License-Identifier: Apache-2.0
"""The operators as Triton kernels: half and bfloat16 on the tensor cores of sm_80 and newer, without a compiler.

``sapa_mm::triton_x`` takes the arguments of ``sapa_mm::x`` and returns what it returns; so do the backwards. Triton is
imported at the first call.
"""

import importlib
import os
from importlib import metadata

import torch

OPERATORS = ('point_affiliation', 'norm_projection')
DTYPES = (torch.float16, torch.bfloat16)
CELLS = 8  # side of the union of windows that a tile of positions meets, and of a tile of cells
POSITIONS = 8  # largest side of a tile of positions


def _is_there() -> bool:
    """Nothing older was tried."""
    try:
        return tuple(int(part) for part in metadata.version('triton').split('.')[:2]) >= (3, 6)
    except metadata.PackageNotFoundError:
        return False


is_there = _is_there()
#: Triton's interpreter runs kernels on the CPU: to test them, slowly.
_interprets = os.environ.get('TRITON_INTERPRET') == '1'


def _tile_side(ratio: int, kernel_size: int) -> int:
    """Positions along one side of a tile: the union of their windows has at most ``CELLS`` cells; 0 where none does."""

    def cells(side):
        return max((i + side - 1) // ratio - i // ratio + 1 for i in range(0, side * ratio, side))

    return next((s for s in (POSITIONS, 4, 2, 1) if s <= POSITIONS and cells(s) + kernel_size - 1 <= CELLS), 0)


def tile_sides(size, cells, kernel_size: int) -> tuple[int, int]:
    """Rows and columns of a tile of positions."""
    return tuple(_tile_side(s // c, kernel_size) for s, c in zip(size, cells))


@torch.compiler.assume_constant_result
def _has_tensor_cores(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fits(
    operator: str, x: torch.Tensor, key: torch.Tensor | None = None, kernel_size: int = 5, border: str = 'zero'
) -> bool:
    """Whether the kernels serve a call: the dtype, the card, and of ``point_affiliation`` what :func:`serves` says.

    ``key`` left out counts as one that fits.
    """
    if not is_there or operator not in OPERATORS or not isinstance(x, torch.Tensor) or x.dtype not in DTYPES:
        return False
    if not (_has_tensor_cores(x.device.index) if x.is_cuda else _interprets and x.device.type == 'cpu'):
        return False
    # offsets inside a tile have 32 bits
    if x.dim() != 4 or x.numel() == 0 or max(x.shape[1:]) > 2**15 or x.shape[2] * x.shape[3] > 2**24:
        return False
    return border == 'zero' and (key is None or serves(x, key, kernel_size))


def serves(query: torch.Tensor, key: torch.Tensor, kernel_size: int) -> bool:
    """Whether the kernels of ``point_affiliation`` are written for these sizes: integer ratios and K <= 7.

    At the ratio 1 the windows of K = 7 are too large for a tile.
    """
    size, cells = query.shape[2:], key.shape[2:]
    if key.numel() == 0 or any(s % c for s, c in zip(size, cells)):
        return False
    rows, columns = tile_sides(size, cells, kernel_size)
    return rows * columns >= 16  # a tile of tensor cores


#: Operator -> its tensors, what it returns beside the output, its options; as in ops/x.cpp.
_SCHEMAS = dict(
    point_affiliation=(('query', 'key', 'value'), ('normalizer',), 'int kernel_size, int normalization, int border'),
    norm_projection=(('x', 'matrix', 'shift'), ('mean', 'rstd'), 'float eps'),
)
_LIBRARY = torch.library.Library('sapa_mm', 'FRAGMENT')


def _define(name: str) -> None:
    tensors, saved, options = _SCHEMAS[name]
    arguments, outputs = (', '.join(f'Tensor {t}' for t in names) for names in (tensors, saved))
    returned = ', '.join(['Tensor'] * (1 + len(saved)))
    _LIBRARY.define(f'triton_{name}({arguments}, {options}) -> ({returned})')
    _LIBRARY.define(
        f'_triton_{name}_backward(Tensor grad, {arguments}, {outputs}, {options}, bool[3] needs_grad)'
        ' -> (Tensor, Tensor, Tensor)'
    )

    def forward(*args):
        return importlib.import_module(f'.{name}', __name__).forward(*args)

    def backward(*args):
        return importlib.import_module(f'.{name}', __name__).backward(*args)

    for key in ('CUDA', 'CPU'):
        _LIBRARY.impl(f'triton_{name}', forward, key)
        _LIBRARY.impl(f'_triton_{name}_backward', backward, key)


if is_there:
    for _name in OPERATORS:
        _define(_name)
