# SPDX-License-Identifier: Apache-2.0
"""Questions about sizes that must not tie a compiled graph to their answer.

A branch on the sizes of a map is decided where ``torch.compile`` or ``torch.export`` read the code, and the graph holds
for maps that answer alike: with sizes left open, every new ratio of feature to guide compiles again, and an export is
refused. What is faster for some sizes therefore asks :func:`known`, and has a form for all sizes beside it.
"""

import torch
from torch import Tensor

#: Whether the tracers of this torch can answer without holding the graph to the answer.
CAN_KEEP_SIZES_OPEN = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 8)

if CAN_KEEP_SIZES_OPEN:
    from torch.fx.experimental.symbolic_shapes import statically_known_true


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is tracing."""
    compiler = getattr(torch, 'compiler', None)
    if hasattr(compiler, 'is_compiling'):
        return compiler.is_compiling()
    return torch._dynamo.is_compiling()  # torch 2.1 and 2.2


def known(condition: bool) -> bool:
    """Whether a condition on sizes holds; while they are open, whether it holds for all of them."""
    if CAN_KEEP_SIZES_OPEN and is_compiling():
        return statically_known_true(condition)
    return condition


def within(numbers: tuple[int, ...], limit: int, device=None) -> bool | Tensor:
    """Whether all numbers, made of sizes, are at least 0 and below ``limit``.

    Returns:
        A bool, or a tensor of one where the sizes are open and the answer is too.
    """
    if all(known(n >= 0) and known(n < limit) for n in numbers):
        return True
    if not (CAN_KEEP_SIZES_OPEN and is_compiling()):
        return False
    if any(known(n < 0) or known(n >= limit) for n in numbers):
        return False
    answers = [(n >= 0) & (n < limit) for n in (torch.scalar_tensor(n, device=device) for n in numbers)]
    return torch.stack(answers).all()
