# SPDX-License-Identifier: Apache-2.0
"""ReSFU: similarity of a refined query with its neighbours at the fine positions, mixing sub-pixel neighbours."""

from math import exp

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..ops import deformable_assembly
from ..ops.borders import extend
from ..ops.maps import cell_of
from ..ops.sizes import is_compiling
from ..registry import MODELS
from .base import BaseUpsampler, require_positive_int
from .sampling import full_precision

#: Channels between the difference convolution and the scores.
HIDDEN = 128
#: Groups of the norms beside a difference convolution.
NORM_GROUPS = 8
#: What scores of neighbours outside the map become.
OUTSIDE = -1e7


@MODELS.register_module()
class ReSFU(BaseUpsampler):
    r"""Refreshed similarity-based upsampling: a query refined by guided and Gaussian filters, neighbours off the grid.

    With ``y`` the guide, ``x`` the feature, ``norm`` GroupNorm of 32 groups (or as many as there are channels, if
    fewer) and ``s`` the ``scale_factor``::

        q    = W_q norm(y),    k = bilinear(W_k norm(x))
        q_g  = guided filter of k by q,    q_s = 3x3 Gaussian of q
        score = PCDC_semantic(k, q_g) + PCDC_detail(q_s, q)                      K^2 channels, one per neighbour
        out  = sum over neighbours n of softmax(score)_n * (x at place + n)

    The place of position ``(i, j)`` is ``((i + 1/2) h / H - 1/2, (j + 1/2) w / W - 1/2)``. Neighbours lie a position of
    the feature apart, clamped to the map, between whose positions ``at`` interpolates bilinearly: a weight of 1 for the
    middle one is bilinear interpolation. Neighbours outside the guide, ``s`` of its positions apart, get no weight.

    ``PCDC(k, q)`` (paired central difference convolution) normalises both by one GroupNorm of 8 groups, and::

        z     = sum over neighbours n, s positions apart, of W_n (k at n - q) + b         grouped, to 128 channels
        score = conv1x1(GroupNorm(relu(grouped conv1x1(relu(z)))))

    with borders repeated. The guided filter fits, per channel, ``k = a q + b`` in windows of ``2 r + 1`` positions.

    Any size of guide works; ``s`` only says how far the neighbours of the scores lie apart. The published operator asks
    for ``H = s h``. Its CUDA gradient of ``x`` leaves out the points clamped to the last row and column; this one does
    not.

    Parameter names are the published ones, whose state dicts load; the constant ``GF.kernel`` in them is not kept here.

    Args:
        in_channels (int): Channels ``Cx`` of the feature and of the result; the authors' ``dim_x``.
        guide_channels (int, optional): Channels ``Cy`` of the guide; ``dim_y``. Defaults to ``in_channels``.
        scale_factor (int): Ratio ``s`` that is expected, 2, 4 or 8 in the published models. Defaults to 2.
        kernel_size (int): Neighbours ``K`` along each axis, odd. Defaults to 3.
        embed_dims (int): Channels ``e`` of query and key, divisible by 8 and ``groups``; ``embedding_dim``. Defaults
            to 32.
        groups (int): Groups ``G`` of the difference convolution; divides 128. Defaults to 4.
        norm_guide (bool): Normalise the guide; ``normy``. Defaults to True.
        norm_feature (bool): Normalise the feature; ``normx``. Defaults to True.
        radius (int): Radius of the guided filter, in positions of the guide, at least ``filter_stride``. Defaults to 8.
        eps (float): Added to its variances, positive. Defaults to 0.001.
        filter_stride (int): It works on every ``filter_stride``-th position of the guide; ``gf_scale``. Defaults to 2.
        lr_mult (float): Factor on the gradients of the ``PCDC`` parameters, 500 in the published SegFormer. Defaults
            to 1.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide, ``e`` of ``embed_dims``, ``G`` groups and side ``K``.

        - Parameters: ``(Cx + Cy) e + 2 e`` and ``2 (Cx + Cy)`` for the norms, then twice
          ``128 e K^2 / G + 128 + 2 e + 128^2 / G + 128 + 256 + 129 K^2``. 47,570 for 256 channels.
        - Multiply-accumulates per position of the feature, at twice its size, beside the filters:
          ``Cx e + 4 Cy e``, twice ``512 (e (K^2 + 1) + 128) / G + 512 K^2``, and ``20 K^2 Cx`` for the mixing.

    Source: https://arxiv.org/abs/2407.02283
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        kernel_size: int = 3,
        embed_dims: int = 32,
        groups: int = 4,
        norm_guide: bool = True,
        norm_feature: bool = True,
        radius: int = 8,
        eps: float = 0.001,
        filter_stride: int = 2,
        lr_mult: float = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        for name, value in dict(
            scale_factor=scale_factor,
            kernel_size=kernel_size,
            embed_dims=embed_dims,
            groups=groups,
            radius=radius,
            filter_stride=filter_stride,
        ).items():
            require_positive_int(name, value)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        if embed_dims % NORM_GROUPS or embed_dims % groups or HIDDEN % groups:
            raise ValueError(
                f'embed_dims must be divisible by {NORM_GROUPS} and by groups, and {HIDDEN} by groups, '
                f'got {embed_dims} and {groups} groups'
            )
        if radius < filter_stride:
            raise ValueError(f'radius must be at least filter_stride, got {radius} and {filter_stride}')
        for name, value in dict(eps=eps, lr_mult=lr_mult).items():
            if not value > 0:
                raise ValueError(f'{name} must be positive, got {value}')
        self.scale_factor = scale_factor
        self.kernel_size = kernel_size
        self.radius = radius
        self.eps = eps
        self.filter_stride = filter_stride
        self.lr_mult = lr_mult
        self.norm_x = make_norm(in_channels, 'feature') if norm_feature else nn.Identity()
        self.norm_y = make_norm(self.guide_channels, 'guide') if norm_guide else nn.Identity()
        self.q = nn.Conv2d(self.guide_channels, embed_dims, 1)
        self.k = nn.Conv2d(in_channels, embed_dims, 1)
        options = (embed_dims, kernel_size, scale_factor, groups)
        self.semantic_scores = DifferenceScores(*options)
        self.detail_scores = DifferenceScores(*options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions normal with deviation 0.02, difference convolutions Kaiming-normal of fan-out, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif isinstance(module, DifferenceScores):
                nn.init.kaiming_normal_(module.weight, mode='fan_out')
                nn.init.zeros_(module.bias)

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
        kernels = self._kernels(feature, guide)
        offset = self._offset(feature.shape[2:], full_precision(kernels)).flatten(0, 1)
        offset = offset.expand(len(feature), -1, -1, -1).to(feature.dtype)
        return deformable_assembly(feature, kernels, offset)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The weights of the neighbours that :meth:`forward` mixes, ``(N, 1, K*K, H, W)``, row-major."""
        return self._kernels(feature, guide)[:, None]

    def positions(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Where they lie, ``(N, 1, K*K, 2, H, W)``: ``x``, ``y`` in positions of the feature."""
        self.check_inputs(feature, guide)
        offset = self._offset(feature.shape[2:], full_precision(guide))
        rows, columns = (cell_of(s, c, feature.device) for s, c in zip(guide.shape[2:], feature.shape[2:]))
        positions = offset + torch.stack(torch.meshgrid(columns, rows, indexing='xy'))
        return positions.expand(len(feature), 1, *positions.shape)

    def _kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        self.check_inputs(feature, guide)
        query = self.q(self.norm_y(guide))
        key = F.interpolate(self.k(self.norm_x(feature)), guide.shape[2:], mode='bilinear', align_corners=False)
        filtered = guided_filter(query, key, self.radius // self.filter_stride, self.eps, self.filter_stride)
        scores = self._scores(self.semantic_scores, key, filtered)
        scores = scores + self._scores(self.detail_scores, gaussian(query), query)
        # half precision has no number as low as OUTSIDE
        return full_precision(scores).masked_fill(self._outside(guide), OUTSIDE).softmax(1).to(scores.dtype)

    def _scores(self, module: nn.Module, key: Tensor, query: Tensor) -> Tensor:
        if self.lr_mult == 1:
            return module(key, query)
        # the value is that of p, the gradient of p the multiple
        scaled = {name: torch.lerp(p.detach(), p, self.lr_mult) for name, p in module.named_parameters()}
        return functional_call(module, scaled, (key, query))

    def _outside(self, guide: Tensor) -> Tensor:
        """Whether a neighbour lies outside the guide, ``(K*K, H, W)``."""
        steps = torch.arange(self.kernel_size, device=guide.device) - self.kernel_size // 2
        rows, columns = (
            (at < 0) | (at >= side)
            for side in guide.shape[2:]
            for at in [torch.arange(side, device=guide.device) + steps[:, None] * self.scale_factor]
        )
        return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(0, 1)

    def _offset(self, cells: tuple[int, int], like: Tensor) -> Tensor:
        """From the cells to the neighbours, clamped to the map, ``(K*K, 2, H, W)``: ``x``, ``y``."""
        side, size = self.kernel_size, like.shape[2:]
        steps = torch.arange(side, device=like.device) - side // 2
        rows, columns = (
            clamped_offset(length, cell, steps, like.dtype) for length, cell in zip(size, cells)
        )  # (K, H), (K, W)
        x = columns[None, :, None, :].expand(side, side, *size)
        y = rows[:, None, :, None].expand(side, side, *size)
        return torch.stack([x, y], 2).flatten(0, 1)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        state_dict.pop(f'{prefix}GF.kernel', None)


class DifferenceScores(nn.Module):
    """Paired central difference convolution and what turns its result into one score per neighbour."""

    def __init__(self, embed_dims: int, kernel_size: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.groups = groups
        self.norm = nn.GroupNorm(NORM_GROUPS, embed_dims)
        self.weight = nn.Parameter(torch.empty(HIDDEN, embed_dims // groups, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(1, HIDDEN, 1, 1))
        self.channel_compressor = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 1, groups=groups),
            nn.ReLU(),
            nn.GroupNorm(NORM_GROUPS, HIDDEN),
            nn.Conv2d(HIDDEN, kernel_size**2, 1),
        )

    def forward(self, key: Tensor, query: Tensor) -> Tensor:
        key, query = self.norm(key), self.norm(query)
        border = self.weight.shape[2] // 2 * self.dilation
        around = F.conv2d(continued(key, border), self.weight, dilation=self.dilation, groups=self.groups)
        # The query is the same for all neighbours, so their weights are added first.
        middle = F.conv2d(query, self.weight.sum((2, 3), keepdim=True), groups=self.groups)
        return self.channel_compressor(around - middle + self.bias)


def make_norm(channels: int, name: str) -> nn.GroupNorm:
    groups = min(32, channels)
    if channels % groups:
        raise ValueError(f'the norm of the {name} has 32 groups and needs channels divisible by 32, got {channels}')
    return nn.GroupNorm(groups, channels)


def clamped_offset(size: int, cells: int, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Neighbours of every position of an axis, clamped to the map, from the cell: ``(K, size)``."""
    position = torch.arange(size, device=steps.device, dtype=dtype)
    places = (position + 0.5) * cells / size - 0.5 + steps[:, None]
    return places.clamp(0, cells - 1) - cell_of(size, cells, steps.device)


def gaussian(x: Tensor) -> Tensor:
    """3x3 Gaussian of deviation 1, borders repeated."""
    side = x.new_tensor([exp(-0.5), 1, exp(-0.5)])
    side = side / side.sum()
    kernel = torch.outer(side, side).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(continued(x, 1), kernel, groups=x.shape[1])


def continued(x: Tensor, radius: int) -> Tensor:
    """Repeat the border. ``F.pad`` is the faster, but torch foretells wrong strides of its backward to compilers."""
    return extend(x, radius, 'replicate') if is_compiling() else F.pad(x, (radius,) * 4, mode='replicate')


def guided_filter(guide: Tensor, x: Tensor, radius: int, eps: float, stride: int) -> Tensor:
    """Fit ``x = a guide + b`` per channel in windows, on every ``stride``-th position; the mean of the fits.

    Args:
        guide: ``(N, C, H, W)``.
        x: Same shape.
        radius: Of the windows, in the positions that remain.
        eps: Added to the variance of the guide.
        stride: Positions per position that remains.

    Returns:
        ``(N, C, H, W)``; half and bfloat16 are computed in float32, the difference of two moments needs it.
    """
    size = guide.shape[2:]
    height, width = (stride * torch.sym_max(side // stride, 1) for side in size)
    small, target = (full_precision(t[:, :, :height:stride, :width:stride]) for t in (guide, x))
    mean_guide, mean_x = box(small, radius), box(target, radius)
    covariance = box(small * target, radius) - mean_guide * mean_x
    variance = box(small * small, radius) - mean_guide * mean_guide
    a = covariance / (variance + eps)
    b = mean_x - a * mean_guide
    a, b = (F.interpolate(box(t, radius), size, mode='bilinear', align_corners=False) for t in (a, b))
    return (a * guide + b).to(guide.dtype)


def box(x: Tensor, radius: int) -> Tensor:
    """Mean over the part of a window of ``2 radius + 1`` positions that lies inside the map."""
    side = 2 * radius + 1
    x = F.avg_pool2d(x, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), 1, (0, radius), count_include_pad=False)
