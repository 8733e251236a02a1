# SPDX-License-Identifier: Apache-2.0
"""What all upsamplers share, and how necks and heads build them."""

import difflib
import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.maps import accumulation_dtype
from ..ops.sizes import is_compiling, known, within
from ..registry import MODELS, BaseModule
from ..state_dict import LoadsPublishedLayout


class BaseUpsampler(LoadsPublishedLayout, BaseModule):
    """A module that gives a low-resolution feature the size of a high-resolution guide.

    Called as ``module(feature, guide)``. One that needs only the guide's size takes ``size=(H, W)`` or
    ``scale_factor=`` in place of the guide, and without either multiplies the size by its own ``scale_factor`` if it
    has one.

    A subclass sets :attr:`needs_guide`, implements :meth:`forward`, and initialises its own parameters in
    :meth:`reset_parameters`, which it calls at the end of its constructor.

    Args:
        in_channels (int): Channels of the feature, positive.
        guide_channels (int, optional): Channels of the guide. Defaults to ``in_channels``.
        out_channels (int, optional): Channels of the result. Defaults to ``in_channels``.
        init_cfg (dict or list[dict], optional): Initialisation of mmengine, applied after the upsampler's own.

    Raises:
        ValueError: If a channel count is not a positive integer.
    """

    #: Whether the values of the guide are used, not only its size.
    needs_guide = True
    #: Options of each published variant by its name. A class without its own has one, of its name and the defaults.
    variants: ClassVar[dict[str, dict]]

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        out_channels: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.guide_channels = in_channels if guide_channels is None else guide_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        for name in ('in_channels', 'guide_channels', 'out_channels'):
            require_positive_int(name, getattr(self, name))

    def __call__(
        self,
        feature: Tensor,
        guide: Tensor | None = None,
        *args,
        size: tuple[int, int] | None = None,
        scale_factor: float | None = None,
        **kwargs,
    ) -> Tensor:
        """:meth:`forward`, with a guide or, where only its size counts, with that size.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``.
            size: Height and width to give, in place of ``guide``.
            scale_factor: Ratio of both sides, in place of ``guide``; the size is rounded down, as
                ``F.interpolate`` does. Defaults to the module's own ``scale_factor``.

        Raises:
            TypeError: If a guide is missing that is needed, or more than one of the three is given.
        """
        if guide is None:
            guide = self._stand_in(feature, size, scale_factor)
        elif size is not None or scale_factor is not None:
            raise TypeError(f'{type(self).__name__} takes one of guide, size and scale_factor, got more')
        return super().__call__(feature, guide, *args, **kwargs)

    def _stand_in(self, feature: Tensor, size: tuple[int, int] | None, scale_factor: float | None) -> Tensor:
        """A guide of one value that has the size asked for."""
        kind = type(self).__name__
        if self.needs_guide:
            raise TypeError(f'{kind} needs a guide: call it with (feature, guide)')
        if size is not None and scale_factor is not None:
            raise TypeError(f'{kind} takes one of guide, size and scale_factor, got more')
        if size is None:
            ratio = getattr(self, 'scale_factor', None) if scale_factor is None else scale_factor
            if ratio is None:
                raise TypeError(f'{kind} needs a guide, size=(H, W) or scale_factor=')
            size = [int(side * ratio) for side in feature.shape[2:]]
        return feature.new_empty(()).expand(feature.shape[0], 1, *size)

    def reset_parameters(self) -> None:
        """Initialise the parameters as published; nothing to do where there are none."""

    def init_weights(self) -> None:
        """Initialise again, own rules first, then ``init_cfg``.

        A neck or head that runs its ``init_cfg`` over all its convolutions, the upsampler's among them, calls this
        afterwards, so the published initialisation stays.
        """
        self.reset_parameters()
        super().init_weights()

    def check_inputs(self, feature: Tensor, guide: Tensor) -> None:
        """Raise :class:`ValueError` unless both are NCHW maps with the channels that the module was built for."""
        for name, x, channels in (
            ('feature', feature, self.in_channels),
            ('guide', guide, self.guide_channels if self.needs_guide else None),
        ):
            if x.dim() != 4:
                raise ValueError(f'{name} must have 4 dimensions (N, C, H, W), got {x.dim()}: {tuple(x.shape)}')
            if channels is not None and x.shape[1] != channels:
                raise ValueError(
                    f'{type(self).__name__} was built for a {name} of {channels} channels, got {x.shape[1]}'
                )
        if feature.shape[0] != guide.shape[0]:
            raise ValueError(f'feature and guide must have one batch size, got {feature.shape[0]} and {guide.shape[0]}')
        # A graph that is traced for any size must not depend on which map is larger.
        if not (torch.jit.is_tracing() or is_compiling()) and feature.shape[2:] != guide.shape[2:]:
            if all(have >= want for have, want in zip(feature.shape[2:], guide.shape[2:])):
                warn_of_swapped_arguments(type(self).__name__)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.

        Returns:
            ``(N, out_channels, H, W)``.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement forward(feature, guide)')

    def fuse(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The step of a top-down path: the upsampled feature and the finer level in one map.

        The sum of FPN, unless an upsampler was published with a guide that it changes or a lateral of its own.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size. The sum needs ``guide_channels`` equal to ``out_channels``.

        Returns:
            ``(N, out_channels, H, W)``.
        """
        return guide + self(feature, guide)

    def pair(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """The step of a decoder that concatenates: the upsampled feature and what stands beside it.

        That is the guide itself, which the decoder's own convolution weighs, unless an upsampler was published to
        concatenate with a guide that it changes. A lateral of its own or a blend, as :meth:`fuse` may have, is made for
        a sum.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.

        Returns:
            ``(N, out_channels, H, W)`` and ``(N, guide_channels, H, W)``.
        """
        return self(feature, guide), guide


@cache
def warn_of_swapped_arguments(kind: str) -> None:
    """Say, once for each kind of upsampler, that the guide is the smaller map."""
    warnings.warn(
        f'{kind} got a guide that is smaller than the feature, and gives its size. The order is (feature, guide); some '
        'published code passes the guide first.',
        stacklevel=3,
    )


def fit(x: Tensor, size: tuple[int, int], scale_factor: int) -> Tensor:
    """Bring the result of an operator that multiplies sizes by ``scale_factor`` to ``size``.

    The odd sides that strided convolutions leave, up to ``scale_factor - 1`` short of the multiple, lose their last
    rows and columns: position 0 of both maps is the same place, so what remains lies where it should. Any other
    ratio is interpolated bilinearly, and any ratio gives exactly ``size``.

    Args:
        x: ``(N, C, scale_factor * h, scale_factor * w)``.
        size: Height and width to give, positive.
        scale_factor: Factor that ``x`` was upsampled by.

    Returns:
        ``(N, C, *size)``.
    """
    short = within(tuple(have - want for have, want in zip(x.shape[2:], size)), scale_factor, x.device)
    if isinstance(short, Tensor):
        return copy_or_interpolate(x, size, short)
    return cut(x, size) if short else F.interpolate(x, size, mode='bilinear', align_corners=False)


def cut(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The first rows and columns of ``x``, ``(N, C, h, w)``: ``(N, C, *size)``, no size larger than that of ``x``."""
    if all(known(have == want) or known(have > want) for have, want in zip(x.shape[2:], size)):
        return x[:, :, : size[0], : size[1]]
    # a copy: whether a slice is contiguous, which tracers ask, depends on its sizes
    rows, columns = (torch.arange(side, device=x.device) for side in size)
    return x.index_select(2, rows).index_select(3, columns)


def copy_or_interpolate(x: Tensor, size: tuple[int, int], copy: Tensor) -> Tensor:
    """``x`` of another size: position for position, with the last repeated, or interpolated bilinearly.

    For graphs that hold for all sizes: one form for both.

    Args:
        x: ``(N, C, h, w)``.
        size: Height and width to give.
        copy: One bool, which of the two.

    Returns:
        ``(N, C, *size)``.
    """
    out = x.to(accumulation_dtype(x.dtype))
    for dim, want in zip((2, 3), size):
        have = x.shape[dim]
        position = torch.arange(want, device=x.device, dtype=out.dtype)
        place = torch.where(copy, position, ((position + 0.5) * have / want - 0.5).clamp(min=0)).clamp(max=have - 1)
        low = place.long()
        high = (low + 1).clamp(max=have - 1)
        weight = (place - low).view(-1, *[1] * (3 - dim))
        out = torch.lerp(out.index_select(dim, low), out.index_select(dim, high), weight)
    return out.to(x.dtype)


def pixel_shuffle(x: Tensor, scale_factor: int) -> Tensor:
    """``F.pixel_shuffle``; torch gives its gradient a wrong shape for an empty batch, as of no regions of interest."""
    if x.numel():
        return F.pixel_shuffle(x, scale_factor)
    n, c, h, w = x.shape
    return x.reshape(n, c // scale_factor**2, scale_factor * h, scale_factor * w)


def require_positive_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a positive integer, got {value!r}')


def require_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f'{name} must be one of {choices}, got {value!r}')


#: Options of interpolations and convolutions that a toolbox's ``upsample_cfg`` may have.
PARENTS_OPTIONS = (
    *('mode', 'scale_factor', 'align_corners', 'recompute_scale_factor', 'antialias', 'size'),
    *('conv_first', 'kernel_size', 'stride', 'padding', 'upsample_kernel'),
)


def upsampler_class(cfg: Mapping | None) -> type[BaseUpsampler] | None:
    """The upsampler that ``cfg['type']`` names, with or without the scope ``sapa_mm``; None where it names none."""
    kind = (cfg or {}).get('type')
    if isinstance(kind, str):
        kind = MODELS.get(kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseUpsampler) else None


def build_upsampler(cfg: Mapping, in_channels: int, guide_channels: int) -> BaseUpsampler:
    """Build an upsampler from its config, with the channel counts of the place where it stands.

    Args:
        cfg (dict): ``type`` and options of a registered upsampler; its own channel counts, if any, must agree. The
            scope may be left out: ``dict(type='SAPA')``.
        in_channels (int): Channels of the feature there.
        guide_channels (int): Channels of the guide there.

    Returns:
        BaseUpsampler: The module.

    Raises:
        TypeError: If ``cfg`` is no mapping with a ``type``, or has an option that the upsampler does not know.
        ValueError: If an option is out of range, or the result would not have ``in_channels`` channels.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise TypeError(f"upsample_cfg must be a dict with a 'type', such as dict(type='sapa_mm.SAPA'), got {cfg!r}")
    kind = upsampler_class(cfg)
    if kind is None:
        raise TypeError(f"upsample_cfg: type {cfg['type']!r} is no upsampler; did you mean 'sapa_mm.SAPA'?")
    known = [name for name in inspect.signature(kind).parameters if name != 'self']
    for name in cfg:
        if name not in ('type', '_scope_') and name not in known:  # mmengine marks inherited dicts with `_scope_`
            close = difflib.get_close_matches(name, known, n=1)
            if name in PARENTS_OPTIONS:
                hint = '. If a base config left it in upsample_cfg, add _delete_=True to yours.'
            else:
                hint = f'; did you mean {close[0]!r}?' if close else ''
            raise TypeError(f'upsample_cfg: {kind.__name__} has no option {name!r}{hint} It has {sorted(known)}')
    options = {name: value for name, value in cfg.items() if name not in ('type', '_scope_')}
    # Not by the registry: with a toolbox's default scope that would look up a name without scope in the toolbox's.
    upsampler = kind(**{'in_channels': in_channels, 'guide_channels': guide_channels, **options})
    for name, here in (('in_channels', in_channels), ('guide_channels', guide_channels), ('out_channels', in_channels)):
        if getattr(upsampler, name) != here:
            raise ValueError(f'upsample_cfg: {name} must be {here} here, got {getattr(upsampler, name)}')
    return upsampler
