# SPDX-License-Identifier: Apache-2.0
"""What the compiled operators have in common on the Python side: fake kernels and autograd.

Registered through :mod:`torch.library`, so that ``torch.compile`` and the dispatcher see one node each.
"""

from collections.abc import Sequence

import torch

# torch 2.4 renamed impl_abstract, and gave operators of C++ libraries register_autograd.
register_fake = getattr(torch.library, 'register_fake', None) or torch.library.impl_abstract


def register_backward(name: str, tensors: int) -> None:
    """Differentiate ``sapa_mm::name`` by ``sapa_mm::_name_backward``, and that not at all.

    The backward takes the gradient of the output, all arguments of the operator (of which the first ``tensors`` are
    tensors) and which gradients are needed; it returns one for each tensor, empty where not needed.
    """

    def save(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def backward(ctx, grad):
        needs_grad = ctx.needs_input_grad[:tensors]
        run = getattr(torch.ops.sapa_mm, f'_{name}_backward')
        grads = run(grad, *ctx.saved_tensors, *ctx.options, needs_grad)
        return needed_gradients(grads, needs_grad, ctx.options)

    torch.library.register_autograd(f'sapa_mm::{name}', backward, setup_context=save)
    no_double_backward(f'_{name}_backward')


def needed_gradients(grads: Sequence[torch.Tensor], needs_grad: Sequence[bool], options: Sequence) -> tuple:
    """What autograd wants from a backward: None where not needed, and for options."""
    return (*(g if needed else None for g, needed in zip(grads, needs_grad)), *(None for _ in options))


def fake_gradients(inputs: Sequence[torch.Tensor], needs_grad: Sequence[bool]) -> tuple[torch.Tensor, ...]:
    """What a backward operator returns, without values."""
    return tuple(
        torch.empty_like(x, memory_format=memory_format(x)) if needed else x.new_empty(0)
        for x, needed in zip(inputs, needs_grad)
    )


def no_double_backward(name: str) -> None:
    """Make the gradient of a backward operator an error; without a formula torch would return zeros."""

    def refuse(ctx, *grads):
        raise NotImplementedError(
            f'sapa_mm::{name} has no second derivative; sapa_mm.ops.reference can be differentiated twice'
        )

    torch.library.register_autograd(f'sapa_mm::{name}', refuse)


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The memory format that an output takes from ``x``."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
