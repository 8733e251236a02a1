# SPDX-License-Identifier: Apache-2.0
"""How the compiled operators are differentiated and batched: each is one node of autograd's graph.

``torch.library.register_autograd`` came with torch 2.4, drops tangents of forward mode without a word, refuses
``torch.func``, and does no more than this.
"""

from collections.abc import Callable, Sequence

import torch
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd.forward_ad import _set_fwd_grad_enabled

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
    if hasattr(torch.library, 'register_vmap'):  # before torch 2.5 torch runs one sample after the other, and warns
        for each in (name, f'_{name}_backward'):
            torch.library.register_vmap(f'sapa_mm::{each}', _batching_rule(each), lib=_LIBRARY)


def _register(name: str, save: Callable, backward: Callable) -> None:
    operator = getattr(torch.ops.sapa_mm, name).default

    def forward(ctx, *arguments):
        # Outer transforms of torch.func wait below; they shall record what autograd does not within a Function.
        with torch.enable_grad(), _set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
            output = operator(*arguments)
        save(ctx, arguments, output)
        return output

    def jvp(ctx, *tangents):
        raise NotImplementedError(f'sapa_mm::{name} has no forward-mode derivative')

    methods = dict(forward=forward, backward=backward, jvp=jvp)
    function = type(name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()})
    # `function.apply` looks for transforms of torch.func and would hand itself to them. Here it is too late for that:
    # the dispatcher has reached one of them, and this is its turn to record a node, as any operator does.
    record = super(torch.autograd.Function, function).apply

    def kernel(*arguments):
        with enable_single_level_autograd_function():
            return record(*unwrap_dead_wrappers(arguments))

    _LIBRARY.impl(name, kernel, 'Autograd')


def _batching_rule(name: str) -> Callable:
    """How ``torch.vmap`` runs ``sapa_mm::name``: in one call, the samples among the images of a batch.

    Unless each sample has parameters of a norm, or wants their gradients, which are sums over the images of a call.
    """
    operator = getattr(torch.ops.sapa_mm, name).default
    arguments = operator._schema.arguments
    tensors = [i for i, argument in enumerate(arguments) if 'Tensor' in str(argument.type)]
    parameters = [i for i in tensors if arguments[i].name in ('weight', 'bias', 'matrix', 'shift')]
    needs_grad = [i for i, argument in enumerate(arguments) if argument.name == 'needs_grad']

    def together(info, in_dims, *values):
        maps = {}
        for i in tensors:
            if i not in parameters:
                x, dim = values[i], in_dims[i]
                x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                images = x.shape[1]
                maps[i] = x.flatten(0, 1)
        outputs = operator(*(maps.get(i, value) for i, value in enumerate(values)))

        def split(x):
            if x.dim() == 1:  # in the place of a gradient that is not needed
                return x.expand(info.batch_size, 0)
            return x.unflatten(0, (info.batch_size, images))

        return tuple(map(split, outputs)) if isinstance(outputs, tuple) else split(outputs)

    def one_by_one(info, in_dims, *values):
        samples = []
        for sample in range(info.batch_size):
            chosen = (x if dim is None else x.select(dim, sample) for x, dim in zip(values, in_dims))
            samples.append(operator(*chosen))
        if isinstance(samples[0], tuple):
            return tuple(map(torch.stack, zip(*samples)))
        return torch.stack(samples)

    def rule(info, in_dims, *values):
        in_dims = [None if isinstance(value, (tuple, list)) else dim for value, dim in zip(values, in_dims)]
        alone = any(in_dims[i] is not None for i in parameters)
        if needs_grad and parameters:
            wanted = values[needs_grad[0]]  # of the tensors after the gradient of the output
            alone = alone or any(wanted[i - 1] for i in parameters)
        outputs = (one_by_one if alone else together)(info, in_dims, *values)
        return outputs, (0,) * len(outputs) if isinstance(outputs, tuple) else 0

    return rule
