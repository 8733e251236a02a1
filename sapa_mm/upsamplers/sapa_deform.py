# SPDX-License-Identifier: Apache-2.0
"""SAPA-D: affiliation with a few freely placed points instead of a window."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..ops.reference import cell_of, nearest
from ..registry import MODELS
from .base import BaseUpsampler, require_choice, require_positive_int
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
        bias (bool): Whether query and key have biases. Defaults to True.
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
        self.offset = nn.Conv2d(in_channels, 2 * groups * num_points * (scale_factor**2 if high_offset else 1), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions from a normal distribution of deviation 0.02, biases 0: all points begin near their cell."""
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
        query, key, samples = self._embed(feature, guide)
        return samples.assemble(feature, samples.scores(query, key).softmax(2)).to(query.dtype)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The weights of the points that :meth:`forward` mixes with, ``(N, groups, num_points, H, W)``."""
        query, key, samples = self._embed(feature, guide)
        return samples.scores(query, key).softmax(2)

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
        return nearest(F.pixel_shuffle(offset, self.scale_factor) if self.high_offset else offset, size)

    def _embed(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, 'Samples']:
        self.check_inputs(feature, guide)
        x = self.norm_x(feature)
        samples = Samples(self.offsets(x, guide.shape[2:]), feature.shape[2:], self.groups)
        return self.q(self.norm_y(guide)), self.k(x), samples


class Samples:
    """Bilinear samples of ``(N, C, h, w)`` maps around the cell of every position of a ``(H, W)`` map.

    A sample is a sum of four rows of the map seen as a table of positions, so sums over samples are
    ``F.embedding_bag``: no map of samples is made, and the sums of its backward have a fixed order. All is computed in
    float32 or float64, since a place in a low dtype would be off by up to a quarter of a position.

    Args:
        offset: ``(N, groups * points * 2, H, W)``: by group, by point, ``x`` (width) then ``y`` (height), in positions
            of the map; 0 is the centre of the cell.
        size: Height and width of the map.
        groups: Groups of channels, each with its own points.
    """

    def __init__(self, offset: Tensor, size: tuple[int, int], groups: int) -> None:
        n, _, height, width = offset.shape
        h, w = size
        self.groups = groups
        self.shape = (n, groups, height, width)
        self.dtype = torch.float64 if offset.dtype == torch.float64 else torch.float32
        offset = offset.to(self.dtype).unflatten(1, (groups, -1, 2))
        # The maps get a border of zeros, and points beyond it move onto it. There they stay without a gradient.
        columns, rows = cell_of(width, w, offset.device), cell_of(height, h, offset.device)
        x = (offset[:, :, :, 0] + columns).clamp(-1, w)
        y = (offset[:, :, :, 1] + rows[:, None]).clamp(-1, h)
        x, y = (t.permute(0, 1, 3, 4, 2) for t in (x, y))  # (N, G, H, W, P)
        # A place that is not a number makes the result one, instead of an index outside the table.
        left, top = (t.detach().floor().nan_to_num(-1) for t in (x, y))
        fx, fy = x - left, y - top
        stride = w + 3
        first = (top.int() + 1) * stride + left.int() + 1
        first += torch.arange(n * groups, dtype=torch.int32, device=offset.device).view(n, groups, 1, 1, 1) * (
            (h + 3) * stride
        )
        corners = torch.tensor([0, 1, stride, stride + 1], dtype=torch.int32, device=offset.device)
        weights = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], -1)
        #: Rows of the table and their shares, ``(N * G * H * W, P, 4)``.
        self.index = (first[..., None] + corners).flatten(0, 3)
        self.weights = weights.flatten(0, 3)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Inner products of ``query (N, G*D, H, W)`` with samples of ``key (N, G*D, h, w)``: ``(N, G, P, H, W)``."""
        table = self._table(key)
        query = query.to(self.dtype).unflatten(1, (self.groups, -1)).flatten(3).transpose(2, 3).flatten(0, 2)
        # Point by point, and sampled again in backward: (N, G, P, D, H, W) is never there.
        points = [
            checkpoint(_scores, query, table, index, weights, use_reentrant=False, preserve_rng_state=False)
            for index, weights in zip(self.index.unbind(1), self.weights.unbind(1))
        ]
        return torch.stack(points, 1).unflatten(0, self.shape).movedim(4, 2)

    def assemble(self, value: Tensor, kernels: Tensor) -> Tensor:
        """Mix samples of ``value (N, C, h, w)`` by ``kernels (N, G, P, H, W)``: ``(N, C, H, W)``."""
        weights = self.weights * kernels.to(self.dtype).movedim(2, 4).flatten(0, 3)[..., None]
        out = F.embedding_bag(
            self.index.flatten(1), self._table(value), per_sample_weights=weights.flatten(1), mode='sum'
        )
        return out.unflatten(0, self.shape).movedim(4, 2).flatten(1, 2)

    def _table(self, x: Tensor) -> Tensor:
        """Positions of every group as rows, with the border: ``(N * G * (h+3) * (w+3), C / G)``."""
        x = F.pad(x.to(self.dtype), (1, 2, 1, 2))
        return x.unflatten(1, (self.groups, -1)).flatten(3).transpose(2, 3).flatten(0, 2)


def _scores(query: Tensor, table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    sampled = F.embedding_bag(index, table, per_sample_weights=weights, mode='sum')
    return (query * sampled).sum(1)
