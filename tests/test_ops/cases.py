# SPDX-License-Identifier: Apache-2.0
"""One small call of every compiled operator, and the layouts that a map comes in."""

import torch
from helpers import random_maps

#: Operator of ``torch.ops.sapa_mm`` -> shapes of its tensors, its options, how many of its outputs are saved ones.
CASES = dict(
    point_affiliation=([(2, 3, 7, 8), (2, 3, 3, 4), (2, 4, 3, 4)], (3, 0, 0), 1),
    feature_assembly=([(2, 4, 3, 4), (2, 18, 7, 8)], (3, 2, 0), 0),
    deformable_scores=([(2, 4, 7, 8), (2, 4, 3, 4), (2, 12, 7, 8)], (2,), 0),
    deformable_assembly=([(2, 4, 3, 4), (2, 6, 7, 8), (2, 12, 7, 8)], (2,), 0),
    channel_norm=([(2, 4, 7, 8), (4,), (4,)], (1e-5,), 2),
    norm_projection=([(2, 4, 7, 8), (3, 4), (3,)], (1e-5,), 2),
)

SLICED = dict(channels=1, rows=2, columns=3)
LAYOUTS = [
    f'{prefix}{memory_format}'
    for prefix in ('', 'expanded ', *(f'{name} of ' for name in SLICED))
    for memory_format in ('contiguous', 'channels_last')
]


def lay_out(x, layout):
    """``x`` in a layout; an expanded map repeats the first image. What has not four dimensions stays as it is."""
    if x.dim() != 4:
        return x
    *prefix, memory_format = layout.split()
    memory_format = torch.channels_last if memory_format == 'channels_last' else torch.contiguous_format
    if not prefix:
        return x.contiguous(memory_format=memory_format)
    if prefix == ['expanded']:
        return x[:1].contiguous(memory_format=memory_format).expand_as(x)
    dim = SLICED[prefix[0]]
    longer = torch.cat([x, x, x], dim).contiguous(memory_format=memory_format)
    return longer.narrow(dim, x.shape[dim], x.shape[dim])


def inputs_of(name, layout='contiguous', dtype=torch.float32, device='cpu'):
    """Leaves that require gradients."""
    shapes, _, _ = CASES[name]
    return [lay_out(x, layout).detach().requires_grad_() for x in random_maps(*shapes, dtype=dtype, device=device)]
