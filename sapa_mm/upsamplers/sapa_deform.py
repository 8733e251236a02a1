# SPDX-License-Identifier: Apache-2.0
"""SAPA-D: affiliation with a few freely placed points instead of a window."""

import torch
from torch import Tensor, nn

from ..ops import deformable_assembly, deformable_scores
from ..ops.reference import cell_of, nearest
from ..registry import MODELS
from .base import BaseUpsampler, pixel_shuffle, require_choice, require_positive_int
from .sapa import NORMS, make_norm


@MODELS.register_module()
class SAPADeform(BaseUpsampler):
    r"""Similarity-aware point affiliation with deformable windows (SAPA-D).

    With ``y`` the guide, ``x`` the feature, ``y'`` and ``x'`` both normalised if ``norm`` is set, and channels in
    contiguous groups ``g``, each with points of its own::

        offset   = pixel_shuffle(conv1x1(x'))           (x, y) of every group and point, in positions of the feature
        place    = cell + offset
        score    = <q(y')_g, k(x')_g at place>          for every point
        kernels  = softmax over the points of score
        out_g    = sum over points of kernels * (x_g at place)

    where ``at`` interpolates bilinearly between the centres of positions, and positions outside the map are zero
    vectors: their score is 0 and takes part in the normalisation, their value is 0.

    For a ``(H, W)`` guide the cell of position ``(i, j)`` is ``(floor(i * h / H), floor(j * w / W))``. Offsets come at
    ``scale_factor`` times the size of the feature; if the guide's size is another, each position takes those of its
    cell there by the same rule, which cuts odd sides at the right and bottom. Any size of guide works.

    Parameter names are the published ones and load directly.

    Args:
        in_channels (int): Channels of the feature and of the result, divisible by ``groups``.
        guide_channels (int, optional): Channels of the guide. Defaults to ``in_channels``.
        scale_factor (int): Offsets per position of the feature along each axis, if ``high_offset``: the ratio of sizes
            that is expected. Defaults to 2.
        num_points (int): Points per group. Defaults to 9.
        groups (int): Groups of channels, each with its own points. Defaults to 4.
        embed_dims (int): Width of query and key of one group. Defaults to 32.
        bias (bool): Whether query, key and offset have biases. Defaults to True.
        high_offset (bool): One set of offsets for each of the ``scale_factor`` squared positions of a cell, instead of
            one for all. Defaults to True.
        norm (str, optional): ``'group'`` (GroupNorm of 32 groups), ``'layer'`` (LayerNorm over channels, as
            :class:`SAPA` has it) or None. Defaults to None.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide, ``G`` groups, ``P`` points, ``d`` of ``embed_dims``
        and ``s`` the ``scale_factor``, 1 without ``high_offset``.

        - Parameters: ``G d (Cx + Cy) + 2 G d + 2 G P s^2 (Cx + 1)``, with norm ``2 (Cx + Cy)`` more. 139,808 for 256
          channels.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``4 Cy G d + Cx G d + 2 G P s^2 Cx + 4 G P d + 4 P Cx``, and ``16 P (G d + Cx)`` for the bilinear sampling.

    Source: https://github.com/tiny-smart/sapa
    """

    variants = {'SAPA-D': {}}

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        num_points: int = 9,
        groups: int = 4,
        embed_dims: int = 32,
        bias: bool = True,
        high_offset: bool = True,
        norm: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        for name, value in dict(
            scale_factor=scale_factor, num_points=num_points, groups=groups, embed_dims=embed_dims
        ).items():
            require_positive_int(name, value)
        require_choice('norm', norm, NORMS)
        if in_channels % groups:
            raise ValueError(f'in_channels must be divisible by groups, got {in_channels} and {groups}')
        self.scale_factor = scale_factor
        self.num_points = num_points
        self.groups = groups
        self.high_offset = high_offset
        self.norm_y = make_norm(norm, self.guide_channels)
        self.norm_x = make_norm(norm, in_channels)
        self.q = nn.Conv2d(self.guide_channels, groups * embed_dims, 1, bias=bias)
        self.k = nn.Conv2d(in_channels, groups * embed_dims, 1, bias=bias)
        offsets = 2 * groups * num_points * (scale_factor**2 if high_offset else 1)
        self.offset = nn.Conv2d(in_channels, offsets, 1, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions normal with standard deviation 0.02, biases 0: all points begin near their cell."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.reset_parameters()

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature`` to the size of ``guide``.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        kernels, offset = self._affiliate(feature, guide)
        return deformable_assembly(feature, kernels, offset, self.groups)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The weights of the points that :meth:`forward` mixes with, ``(N, groups, num_points, H, W)``."""
        return self._affiliate(feature, guide)[0].unflatten(1, (self.groups, -1))

    def positions(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Where the points lie, ``(N, groups, num_points, 2, H, W)``: ``x``, ``y`` in positions of the feature."""
        self.check_inputs(feature, guide)
        offset = self.offsets(self.norm_x(feature), guide.shape[2:])
        rows, columns = (cell_of(s, c, feature.device) for s, c in zip(guide.shape[2:], feature.shape[2:]))
        cell = torch.stack(torch.meshgrid(columns, rows, indexing='xy'))
        return offset.unflatten(1, (self.groups, self.num_points, 2)) + cell

    def offsets(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Offsets from the normalised feature, ``(N, groups * num_points * 2, *size)``."""
        offset = self.offset(x)
        return nearest(pixel_shuffle(offset, self.scale_factor) if self.high_offset else offset, size)

    def _affiliate(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        self.check_inputs(feature, guide)
        x = self.norm_x(feature)
        offset = self.offsets(x, guide.shape[2:])
        scores = deformable_scores(self.q(self.norm_y(guide)), self.k(x), offset, self.groups)
        return scores.unflatten(1, (self.groups, -1)).softmax(2).flatten(1, 2), offset
