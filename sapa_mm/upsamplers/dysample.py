# SPDX-License-Identifier: Apache-2.0
"""DySample: upsampling by sampling the feature at learned positions."""

import torch
from torch import Tensor, nn

from ..registry import MODELS
from .base import BaseUpsampler, fit, pixel_shuffle, require_choice, require_positive_int
from .sampling import sample_grid

STYLES = ('lp', 'pl')


@MODELS.register_module()
class DySample(BaseUpsampler):
    r"""Dynamic sampling: each output position samples the feature bilinearly at a predicted offset.

    Position ``i`` of an axis of the finer map lies at ``(i + 1/2) / s - 1/2`` in pixels of the feature, where bilinear
    interpolation samples. A 1x1 convolution predicts an offset from there per output position and channel group, scaled
    by a fixed 1/4 or, with ``dyscope`` (DySample+), by a predicted factor between 0 and 1/2:

        position = base + 1/4 * offset(x)        or        base + 1/2 * sigmoid(scope(x)) * offset(x)

    Positions are clamped to the map. With offsets of 0 the result is bilinear interpolation. In style ``'lp'`` the
    convolutions work on the feature and their result is shuffled to the finer map (linear, then pixel shuffle); in
    ``'pl'`` the feature is shuffled first, which leaves them ``C / s^2`` channels.

    The guide gives only its size. It is the positions that are brought to it, so that the feature is still
    interpolated once: odd sides, up to ``s - 1`` short of the multiple of ``s``, are cut off at the end; for any other
    ratio the map of positions is interpolated.

    Parameter names are the published ones. The published ``init_pos`` is a constant of the ratio and the groups, not
    kept here; ``load_state_dict`` takes checkpoints with it.

    Args:
        in_channels (int): Channels ``C`` of the feature, and of the result.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        scale_factor (int): Ratio ``s``. Defaults to 2.
        style (str): ``'lp'`` or ``'pl'``; ``'pl'`` needs ``in_channels`` divisible by ``s^2``. Defaults to ``'lp'``.
        groups (int): Groups ``G`` of neighbouring channels with positions of their own; divides ``in_channels``.
            Defaults to 4.
        dyscope (bool): Predict the range of the offsets too. Defaults to False.
        scope_bias (bool): Whether ``scope`` has a bias, as in the toolbox versions of the authors; their own module
            has none. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``C`` channels, ``G`` groups and ratio ``s``.

        - Parameters: ``lp``: ``2 G s^2 (C + 1)``. ``pl``: ``2 G (C / s^2 + 1)``. ``dyscope`` adds as many, less the
          biases.
        - Multiply-accumulates per position of the feature, beside the sampling: ``lp``: ``2 G s^2 C``. ``pl``:
          ``2 G C``. ``dyscope`` adds as many.

    Source: https://arxiv.org/abs/2308.15085
    """

    needs_guide = False
    variants = {'DySample': dict(dyscope=False), 'DySample+': dict(dyscope=True)}

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        style: str = 'lp',
        groups: int = 4,
        dyscope: bool = False,
        scope_bias: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        require_positive_int('scale_factor', scale_factor)
        require_positive_int('groups', groups)
        require_choice('style', style, STYLES)
        if in_channels % groups:
            raise ValueError(f'groups must divide in_channels, got {groups} groups and {in_channels} channels')
        if style == 'pl' and in_channels % scale_factor**2:
            raise ValueError(
                f"style='pl' needs in_channels divisible by scale_factor**2 = {scale_factor**2}, got {in_channels}"
            )
        if scope_bias and not dyscope:
            raise ValueError('scope_bias needs dyscope, got scope_bias=True and dyscope=False')
        self.scale_factor = scale_factor
        self.style = style
        self.groups = groups
        self.dyscope = dyscope
        sub_pixels = scale_factor**2
        channels = (in_channels, 2 * groups * sub_pixels) if style == 'lp' else (in_channels // sub_pixels, 2 * groups)
        self.offset = nn.Conv2d(*channels, 1)
        if dyscope:
            self.scope = nn.Conv2d(*channels, 1, bias=scope_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``offset`` normal with standard deviation 0.001, ``scope`` and biases 0: nearly bilinear at first."""
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)
        if self.dyscope:
            for parameter in self.scope.parameters():
                nn.init.zeros_(parameter)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Half and bfloat16 features are sampled in float32: their own resolution is coarser than an offset.

        Returns:
            ``(N, in_channels, H, W)``, dtype of ``feature``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        x, y = self.positions(feature, guide).flatten(0, 1).unbind(1)
        batch, _, height, width = feature.shape
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        grouped = feature.to(grid.dtype).unflatten(1, (self.groups, -1)).flatten(0, 1)
        out = sample_grid(grouped, grid)
        return out.unflatten(0, (batch, self.groups)).flatten(1, 2).to(feature.dtype)

    def positions(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Where :meth:`forward` reads, before the positions are clamped to the map.

        Returns:
            ``(N, groups, 2, H, W)``: x, then y, in pixels of the feature, 0 the centre of the first.
        """
        self.check_inputs(feature, guide)
        scale = self.scale_factor
        x = pixel_shuffle(feature, scale) if self.style == 'pl' else feature
        offset = self.offset(x)
        offset = offset * (self.scope(x).sigmoid() * 0.5 if self.dyscope else 0.25)
        if self.style == 'lp':
            offset = pixel_shuffle(offset, scale)
        if offset.dtype != torch.float64:
            offset = offset.float()
        rows, columns = (
            (torch.arange(scale * cells, dtype=offset.dtype, device=offset.device) + 0.5) / scale - 0.5
            for cells in feature.shape[2:]
        )
        # channels of the offset: x of every group, then y of every group
        x, y = offset.chunk(2, dim=1)
        positions = fit(torch.cat([x + columns, y + rows[:, None]], dim=1), guide.shape[2:], scale)
        return positions.unflatten(1, (2, self.groups)).transpose(1, 2)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        state_dict.pop(f'{prefix}init_pos', None)
