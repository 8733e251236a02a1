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


def point_affiliation(query, key, value, kernel_size, normalization, border):
    output = empty_like(value, (*value.shape[:2], *query.shape[2:]), layout=memory_format(value))
    return output, sums_like(query, query.shape[0], *query.shape[2:])


def feature_assembly(feature, kernels, kernel_size, groups, border):
    return empty_like(feature, (*feature.shape[:2], *kernels.shape[2:]), layout=memory_format(feature))


def deformable_scores(query, key, offset, groups):
    return sums_like(query, offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])


def deformable_assembly(feature, kernels, offset, groups):
    return empty_like(feature, (*feature.shape[:2], *offset.shape[2:]), layout=memory_format(feature))


def channel_norm(x, weight, bias, eps):
    return empty_like(x, x.shape), *moments(x)


def norm_projection(x, matrix, shift, eps):
    return empty_like(x, (x.shape[0], matrix.shape[0], *x.shape[2:])), *moments(x)


def triton_norm_projection(x, matrix, shift, eps):
    output = empty_like(x, (x.shape[0], matrix.shape[0], *x.shape[2:]), layout=memory_format(x))
    return output, *moments(x)


def moments(x):
    return tuple(sums_like(x, x.shape[0], *x.shape[2:]) for _ in range(2))


FAKES = dict(
    point_affiliation=point_affiliation,
    feature_assembly=feature_assembly,
    deformable_scores=deformable_scores,
    deformable_assembly=deformable_assembly,
    channel_norm=channel_norm,
    norm_projection=norm_projection,
    triton_point_affiliation=point_affiliation,
    triton_norm_projection=triton_norm_projection,
)


def register_fakes(name):
    """Of an operator and of its backward."""
    register_fake(name)(FAKES[name])
    tensors = count_tensors(name)

    @register_fake(f'_{name}_backward')
    def _(grad, *arguments):
        inputs, needs_grad = arguments[:tensors], arguments[-1]

        def gradient(x, needed):
            if x is None or not needed:
                return empty_like(inputs[0] if x is None else x, (0,))
            follows = x.dim() == 4 and name not in ('channel_norm', 'norm_projection')
            return empty_like(x, x.shape, layout=memory_format(x) if follows else torch.contiguous_format)

        return tuple(map(gradient, inputs, needs_grad))
