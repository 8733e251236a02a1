# SPDX-License-Identifier: Apache-2.0
"""What the two compiled operators have in common on the Python side: fake kernels and autograd.

Registered through :mod:`torch.library`, so that ``torch.compile`` and the dispatcher see one node each.
"""

import torch

# torch 2.4 renamed impl_abstract, and gave operators of C++ libraries register_autograd.
register_fake = getattr(torch.library, 'register_fake', None) or torch.library.impl_abstract


def no_double_backward(name: str):
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
