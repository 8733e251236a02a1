# SPDX-License-Identifier: Apache-2.0
"""How the compiled operators are differentiated: each is one node of autograd's graph.

``torch.library.register_autograd`` came with torch 2.4, drops tangents of forward mode without a word, and does no more
than this.
"""

from collections.abc import Callable, Sequence

import torch

_LIBRARY = torch.library.Library('sapa_mm', 'IMPL')


def register_fake(name: str) -> Callable:
    """Decorate what tells sizes, dtypes and layouts of the results of ``sapa_mm::name``."""
    if hasattr(torch.library, 'register_fake'):
        return torch.library.register_fake(f'sapa_mm::{name}')
    # before torch 2.4 the kernel of the meta device is the fake one
    return lambda function: _LIBRARY.impl(name, function, 'Meta')


def count_tensors(name: str) -> int:
    """How many tensors ``sapa_mm::name`` takes; they stand before its options."""
    schema = getattr(torch.ops.sapa_mm, name).default._schema
    return sum('Tensor' in str(argument.type) for argument in schema.arguments)


def register_backward(name: str) -> None:
    """Differentiate ``sapa_mm::name`` by ``sapa_mm::_name_backward``, and that not at all.

    The backward takes the gradient of the first output, the tensors, the other outputs (saved and without gradients),
    the options, and which gradients are needed; it returns one for each tensor, empty where not needed.
    """
    tensors = count_tensors(name)
    run_backward = getattr(torch.ops.sapa_mm, f'_{name}_backward').default

    def save(ctx, arguments: Sequence, output) -> None:
        saved = output[1:] if isinstance(output, tuple) else ()
        ctx.save_for_backward(*arguments[:tensors], *saved)
        ctx.options = arguments[tensors:]
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)

    def backward(ctx, grad, *_):
        needs_grad = ctx.needs_input_grad[:tensors]
        grads = (None,) * tensors
        if grad is not None:
            grads = run_backward(grad, *ctx.saved_tensors, *ctx.options, needs_grad)
        return (*(g if needed else None for g, needed in zip(grads, needs_grad)), *(None for _ in ctx.options))

    def refuse(ctx, *grads):
        # without a formula torch would return zeros
        raise NotImplementedError(
            f'sapa_mm::_{name}_backward has no second derivative; sapa_mm.ops.reference can be differentiated twice'
        )

    _register(name, save, backward)
    _register(f'_{name}_backward', lambda *_: None, refuse)


def _register(name: str, save: Callable, backward: Callable) -> None:
    operator = getattr(torch.ops.sapa_mm, name).default

    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*arguments)
        save(ctx, arguments, output)
        return output

    def jvp(ctx, *tangents):
        raise NotImplementedError(f'sapa_mm::{name} has no forward-mode derivative')

    methods = dict(forward=forward, backward=backward, jvp=jvp)
    function = type(name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()})
    _LIBRARY.impl(name, function.apply, 'Autograd')
