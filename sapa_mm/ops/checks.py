# SPDX-License-Identifier: Apache-2.0
"""What the operators ask of their inputs, with the rule and both values in every message."""

import torch
from torch import Tensor

from .borders import BORDERS

NORMALIZATIONS = ('softmax', 'relu', 'sigmoid', 'softplus')
MAX_KERNEL_SIZE = 15


def _check_maps(**maps: Tensor) -> None:
    """All are non-scalar floating NCHW maps of one batch size, dtype and device."""
    first_name, first = next(iter(maps.items()))
    for name, x in maps.items():
        if not isinstance(x, Tensor):
            raise TypeError(f'{name} must be a Tensor, got {type(x).__name__}')
        if x.dim() != 4:
            raise ValueError(f'{name} must have 4 dimensions (N, C, H, W), got {x.dim()}: {tuple(x.shape)}')
        if not x.is_floating_point():
            raise TypeError(f'{name} must be floating point, got {x.dtype}')
        if x.dtype != first.dtype:
            raise TypeError(f'{first_name} and {name} must have one dtype, got {first.dtype} and {x.dtype}')
        if x.device != first.device:
            raise ValueError(f'{first_name} and {name} must be on one device, got {first.device} and {x.device}')
        if x.shape[0] != first.shape[0]:
            raise ValueError(f'{first_name} and {name} must have one batch size, got {first.shape[0]} and {x.shape[0]}')


def _check_size(**maps: Tensor) -> None:
    (a, x), (b, y) = maps.items()
    if x.shape[2:] != y.shape[2:]:
        raise ValueError(
            f'{a} and {b} must have the same height and width, got {tuple(x.shape[2:])} and {tuple(y.shape[2:])}'
        )


def _check_low_resolution(name: str, x: Tensor, size: tuple[int, ...]) -> None:
    if 0 in x.shape[2:] and 0 not in size:
        raise ValueError(f'{name} is empty, {tuple(x.shape)}, where the output has size {tuple(size)}')


def _check_groups(x: Tensor, groups: int, name: str = 'groups') -> None:
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f'{name} must be an int, got {type(groups).__name__}')
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f'{name} must divide the number of channels, got {groups} {name} and {x.shape[1]} channels')


def _check_offset(offset: Tensor, groups: int) -> None:
    if offset.shape[1] == 0 or offset.shape[1] % (2 * groups):
        raise ValueError(
            f'offset must have 2 * groups * points channels, got {offset.shape[1]} channels for {groups} groups'
        )


def check_tensor(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> None:
    """A gradient, something saved or a parameter has this shape, the device of ``like``, and its dtype or another."""
    wanted = dtype or like.dtype
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f'{name} must have shape {tuple(shape)}, got {tuple(x.shape)}')
    if x.dtype != wanted:
        raise TypeError(f'{name} must have dtype {wanted}, got {x.dtype}')
    if x.device != like.device:
        raise ValueError(f'{name} must be on {like.device}, got {x.device}')


def check_kernel_size(kernel_size: int, limit: int | None = MAX_KERNEL_SIZE) -> None:
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise TypeError(f'kernel_size must be an int, got {type(kernel_size).__name__}')
    if kernel_size % 2 == 0 or kernel_size < 1 or (limit is not None and kernel_size > limit):
        rule = 'positive' if limit is None else f'between 1 and {limit}'
        raise ValueError(f'kernel_size must be odd and {rule}, got {kernel_size}')


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(f'normalization must be one of {NORMALIZATIONS}, got {normalization!r}')


def check_border(border: str) -> None:
    if border not in BORDERS:
        raise ValueError(f'border must be one of {BORDERS}, got {border!r}')


def _check_query_and_key(query: Tensor, key: Tensor) -> None:
    _check_maps(query=query, key=key)
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f'query and key must have the same number of channels, got {query.shape[1]} and {key.shape[1]}'
        )
    _check_low_resolution('key', key, query.shape[2:])


def check_scores(
    query: Tensor,
    key: Tensor,
    kernel_size: int,
    normalization: str = 'softmax',
    border: str = 'zero',
    heads: int = 1,
    limit: int | None = MAX_KERNEL_SIZE,
) -> None:
    check_kernel_size(kernel_size, limit)
    check_normalization(normalization)
    check_border(border)
    _check_query_and_key(query, key)
    _check_groups(query, heads, 'heads')


def check_point_affiliation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    normalization: str,
    border: str,
    heads: int,
    limit: int | None = MAX_KERNEL_SIZE,
) -> None:
    check_scores(query, key, kernel_size, normalization, border, heads, limit)
    _check_maps(query=query, value=value)
    _check_size(key=key, value=value)
    _check_groups(value, heads, 'heads')


def check_feature_assembly(
    feature: Tensor,
    kernels: Tensor,
    kernel_size: int,
    groups: int,
    border: str,
    limit: int | None = MAX_KERNEL_SIZE,
) -> None:
    check_kernel_size(kernel_size, limit)
    check_border(border)
    _check_maps(feature=feature, kernels=kernels)
    _check_groups(feature, groups)
    if kernels.shape[1] != groups * kernel_size**2:
        raise ValueError(
            f'kernels must have groups * kernel_size**2 = {groups * kernel_size**2} channels, got {kernels.shape[1]}'
        )
    _check_low_resolution('feature', feature, kernels.shape[2:])


def check_deformable_scores(query: Tensor, key: Tensor, offset: Tensor, groups: int) -> None:
    _check_query_and_key(query, key)
    _check_maps(query=query, offset=offset)
    _check_groups(query, groups)
    _check_offset(offset, groups)
    _check_size(query=query, offset=offset)


def check_deformable_assembly(feature: Tensor, kernels: Tensor, offset: Tensor, groups: int) -> None:
    _check_maps(feature=feature, offset=offset)
    _check_maps(kernels=kernels)
    _check_groups(feature, groups)
    _check_offset(offset, groups)
    if kernels.shape[1] * 2 != offset.shape[1]:
        raise ValueError(f'kernels must have half the channels of offset, got {kernels.shape[1]} and {offset.shape[1]}')
    if kernels.shape[0] != offset.shape[0] or kernels.device != offset.device:
        raise ValueError(
            f'kernels and offset must have one batch size and be on one device, got {kernels.shape[0]} on '
            f'{kernels.device} and {offset.shape[0]} on {offset.device}'
        )
    _check_size(kernels=kernels, offset=offset)
    _check_low_resolution('feature', feature, offset.shape[2:])


def check_channel_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    _check_maps(x=x)
    for name, parameter in dict(weight=weight, bias=bias).items():
        if parameter is not None and parameter.shape != x.shape[1:2]:
            raise ValueError(
                f'{name} must have one element for each of the {x.shape[1]} channels of x, '
                f'got shape {tuple(parameter.shape)}'
            )


def check_norm_projection(x: Tensor, matrix: Tensor, shift: Tensor) -> None:
    _check_maps(x=x)
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    if matrix.dtype != wanted or shift.dtype != wanted:
        raise TypeError(
            f'matrix and shift must have dtype {wanted} for x of {x.dtype}, got {matrix.dtype} and {shift.dtype}'
        )
    if matrix.dim() != 2 or matrix.shape[1] != x.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f'matrix must have one column for each of the {x.shape[1]} channels of x, got shape {tuple(matrix.shape)}'
        )
    if shift.shape != matrix.shape[:1]:
        raise ValueError(
            f'shift must have one element for each of the {matrix.shape[0]} rows of matrix, '
            f'got shape {tuple(shift.shape)}'
        )
