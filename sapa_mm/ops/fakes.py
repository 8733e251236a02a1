# SPDX-License-Identifier: Apache-2.0
"""Fake kernels of the compiled operators: sizes, dtypes and layouts of their results, for ``torch.compile``.

A result takes the layout of the map that it follows, and a gradient that of its input, as
:func:`~sapa_mm.ops.maps.memory_format` says; so does the C++. Scores, moments, and all of the norms are contiguous.
"""

import torch

from .maps import accumulation_dtype, memory_format
from .registration import count_tensors, register_fake


def empty_like(x, shape, dtype=None, layout=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def sums_like(x, *shape):
    return empty_like(x, shape, accumulation_dtype(x.dtype))


@register_fake('point_affiliation')
def _(query, key, value, kernel_size, normalization, border):
    output = empty_like(value, (*value.shape[:2], *query.shape[2:]), layout=memory_format(value))
    return output, sums_like(query, query.shape[0], *query.shape[2:])


@register_fake('feature_assembly')
def _(feature, kernels, kernel_size, groups, border):
    return empty_like(feature, (*feature.shape[:2], *kernels.shape[2:]), layout=memory_format(feature))


@register_fake('deformable_scores')
def _(query, key, offset, groups):
    return sums_like(query, offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])


@register_fake('deformable_assembly')
def _(feature, kernels, offset, groups):
    return empty_like(feature, (*feature.shape[:2], *offset.shape[2:]), layout=memory_format(feature))


@register_fake('channel_norm')
def _(x, weight, bias, eps):
    return empty_like(x, x.shape), *moments(x)


@register_fake('norm_projection')
def _(x, matrix, shift, eps):
    return empty_like(x, (x.shape[0], matrix.shape[0], *x.shape[2:])), *moments(x)


def moments(x):
    return tuple(sums_like(x, x.shape[0], *x.shape[2:]) for _ in range(2))


def register_gradients(name, layout_of):
    tensors = count_tensors(name)

    @register_fake(f'_{name}_backward')
    def _(grad, *arguments):
        inputs, needs_grad = arguments[:tensors], arguments[-1]

        def gradient(x, needed):
            if x is None or not needed:
                return empty_like(inputs[0] if x is None else x, (0,))
            return empty_like(x, x.shape, layout=layout_of(x))

        return tuple(map(gradient, inputs, needs_grad))


for _name in ('point_affiliation', 'feature_assembly', 'deformable_scores', 'deformable_assembly'):
    register_gradients(_name, memory_format)
for _name in ('channel_norm', 'norm_projection'):
    register_gradients(_name, lambda x: torch.contiguous_format)
