# SPDX-License-Identifier: Apache-2.0
"""What the operators ask of their inputs, with the rule and both values in every message."""

from torch import Tensor

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


def _check_low_resolution(name: str, x: Tensor, size: tuple[int, ...]) -> None:
    if 0 in x.shape[2:] and 0 not in size:
        raise ValueError(f'{name} is empty, {tuple(x.shape)}, where the output has size {tuple(size)}')


def check_kernel_size(kernel_size: int) -> None:
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise TypeError(f'kernel_size must be an int, got {type(kernel_size).__name__}')
    if kernel_size % 2 == 0 or not 1 <= kernel_size <= MAX_KERNEL_SIZE:
        raise ValueError(f'kernel_size must be odd and between 1 and {MAX_KERNEL_SIZE}, got {kernel_size}')


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(f'normalization must be one of {NORMALIZATIONS}, got {normalization!r}')


def check_scores(query: Tensor, key: Tensor, kernel_size: int, normalization: str = 'softmax') -> None:
    check_kernel_size(kernel_size)
    check_normalization(normalization)
    _check_maps(query=query, key=key)
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f'query and key must have the same number of channels, got {query.shape[1]} and {key.shape[1]}'
        )
    _check_low_resolution('key', key, query.shape[2:])


def check_point_affiliation(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, normalization: str) -> None:
    check_scores(query, key, kernel_size, normalization)
    _check_maps(query=query, value=value)
    if key.shape[2:] != value.shape[2:]:
        raise ValueError(
            f'key and value must have the same height and width, got {tuple(key.shape[2:])} '
            f'and {tuple(value.shape[2:])}'
        )


def check_feature_assembly(feature: Tensor, kernels: Tensor, kernel_size: int, groups: int) -> None:
    check_kernel_size(kernel_size)
    _check_maps(feature=feature, kernels=kernels)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f'groups must be an int, got {type(groups).__name__}')
    if groups < 1 or feature.shape[1] % groups:
        raise ValueError(
            f'groups must divide the number of channels, got {groups} groups and {feature.shape[1]} channels'
        )
    if kernels.shape[1] != groups * kernel_size**2:
        raise ValueError(
            f'kernels must have groups * kernel_size**2 = {groups * kernel_size**2} channels, got {kernels.shape[1]}'
        )
    _check_low_resolution('feature', feature, kernels.shape[2:])
