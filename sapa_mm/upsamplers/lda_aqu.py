# SPDX-License-Identifier: Apache-2.0
"""LDA-AQU: attention of each interpolated query over a few freely placed points of the feature."""

from math import lcm

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import deformable_assembly, deformable_scores
from ..ops.maps import cell_of
from ..ops.reference import channel_norm
from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, require_positive_int
from .sampling import aligned_shift, full_precision


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW map, rounded as torch rounds it.

    The norm of the offsets has only ``D / G`` channels; of two or three it is nearly a sign function, and float32
    gradients follow every rounding before it: noise of 6e-8 in the feature moved them by 2e-5 of the largest. Published
    results are therefore matched best with torch's own norm, not with the compiled one.
    """

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.weight, self.bias, self.eps)


@MODELS.register_module()
class LDAAQU(BaseUpsampler):
    r"""Local deformable attention with adaptive query guidance: the feature attends to itself.

    With ``x`` the feature, ``r`` half the side of the ``K x K`` points, and channels of the query in contiguous groups
    ``g``, each with points of its own predicted by one network for all::

        q      = bilinear(W_q LN(x)),   k = W_k LN(x)                    interpolation aligned at the corners
        o      = conv(GELU(LN(depthwise3x3(q_g))))                       2 K^2 channels: (y, x) of every point
        place  = (i, j) + (ky - r, kx - r) + R tanh(o)                   in positions of the output
        score  = D^-1/2 <q, k at place + bias>                           over the D channels of a head
        out    = sum over points of softmax(score) * (x at place)

    Place ``(i, j)`` lies at row ``i (h - 1) / (H - 1)`` and column ``j (w - 1) / (W - 1)`` of the feature, between
    whose positions ``at`` interpolates bilinearly. Outside the map key and value are 0, and the score, that of the
    ``bias`` alone, takes part in the softmax. A head mixes contiguous channels of the feature, as does a group.

    The guide gives only the size, any: the definition holds for every ratio.

    Parameter names are the published ones but for two wrappers (``layer_norm.norm``, ``conv_offset.1.norm``);
    ``load_state_dict`` takes the published state dicts.

    Args:
        in_channels (int): Channels ``C`` of the feature, and of the result; divisible by ``groups`` and ``num_heads``.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        reduction_factor (int): Query and key have ``C / reduction_factor`` channels, rounded down, which must be
            divisible by ``groups`` and ``num_heads`` too. Defaults to 4.
        num_heads (int): Heads; the authors' ``nh``. Defaults to 1.
        kernel_size (int): Side ``K`` of the square of points, odd; the authors' ``k_u``. Defaults to 3.
        encoder_kernel (int): Side ``e`` of the convolution that predicts offsets, odd; the authors' ``k_e``. Defaults
            to 3.
        groups (int): Groups ``G``; the authors' ``n_groups``. Defaults to 2.
        offset_range (float): Largest offset ``R`` in positions of the output, positive; the authors'
            ``range_factor``. Defaults to 11.
        position_bias (bool): Whether keys have a bias for each point; the authors' ``rpb``. Defaults to True.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``C`` channels, ``D`` of query and key, ``G`` groups, point side ``K`` and encoder side ``e``.

        - Parameters: ``2 C D + 2 C + 11 D / G + 2 K^2 (e^2 D / G + 1)``, and ``K^2 D`` for the bias. 39,410 for 256
          channels.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``2 C D + 36 D + 8 K^2 e^2 D + 4 K^2 (2 D + C)``, and ``16 K^2 (D + C)`` for the bilinear sampling.

    Source: https://github.com/duzw9311/LDA-AQU
    """

    variants = {'LDA-AQU': {}}
    needs_guide = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        reduction_factor: int = 4,
        num_heads: int = 1,
        kernel_size: int = 3,
        encoder_kernel: int = 3,
        groups: int = 2,
        offset_range: float = 11,
        position_bias: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        for name, value in dict(
            reduction_factor=reduction_factor,
            num_heads=num_heads,
            kernel_size=kernel_size,
            encoder_kernel=encoder_kernel,
            groups=groups,
        ).items():
            require_positive_int(name, value)
        for name, value in dict(kernel_size=kernel_size, encoder_kernel=encoder_kernel).items():
            if value % 2 == 0:
                raise ValueError(f'{name} must be odd, got {value}')
        if not offset_range > 0:
            raise ValueError(f'offset_range must be positive, got {offset_range}')
        embed_dims = in_channels // reduction_factor
        for name, value in dict(groups=groups, num_heads=num_heads).items():
            if in_channels % value or embed_dims % value or not embed_dims:
                raise ValueError(
                    f'{name} must divide the channels of the feature and of the query, got {value} for {in_channels} '
                    f'and {in_channels} // {reduction_factor} = {embed_dims}'
                )
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.groups = groups
        self.offset_range = offset_range
        self.layer_norm = ChannelNorm(in_channels)
        self.proj_q = nn.Conv2d(in_channels, embed_dims, 1, bias=False)
        self.proj_k = nn.Conv2d(in_channels, embed_dims, 1, bias=False)
        channels = embed_dims // groups
        self.conv_offset = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            ChannelNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 2 * kernel_size**2, encoder_kernel, padding=encoder_kernel // 2),
        )
        self.relative_position_bias_table = None
        if position_bias:
            shape = (1, num_heads, 1, kernel_size**2, embed_dims // num_heads)
            self.relative_position_bias_table = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions Xavier-uniform but the last of the offsets, 0; norms the identity; the table normal, 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.zeros_(self.conv_offset[3].weight)
        nn.init.zeros_(self.conv_offset[3].bias)
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        kernels, offset = self._attend(feature, guide)
        # Heads and groups cut the channels at different places: pieces of one head and one group each.
        pieces = lcm(self.num_heads, self.groups)
        kernels = kernels.repeat_interleave(pieces // self.num_heads, 1).flatten(1, 2)
        return deformable_assembly(feature, kernels, self._of_pieces(offset), pieces)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The weights of the points that :meth:`forward` mixes with, ``(N, heads and groups, K*K, H, W)``.

        There is one entry for each piece of the channels that lies in one head and one group.
        """
        kernels, _ = self._attend(feature, guide)
        return kernels.repeat_interleave(lcm(self.num_heads, self.groups) // self.num_heads, 1)

    def positions(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Where the points of :meth:`kernels` lie, ``(N, heads and groups, K*K, 2, H, W)``: ``x``, ``y``."""
        _, offset = self._attend(feature, guide)
        rows, columns = (cell_of(s, c, feature.device) for s, c in zip(guide.shape[2:], feature.shape[2:]))
        cell = torch.stack(torch.meshgrid(columns, rows, indexing='xy'))
        pieces = lcm(self.num_heads, self.groups)
        return self._of_pieces(offset).unflatten(1, (pieces, self.kernel_size**2, 2)) + cell

    def _attend(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(N, heads, K*K, H, W)`` and offsets of every group, ``(N, groups, K*K * 2, H, W)``."""
        self.check_inputs(feature, guide)
        x = self.layer_norm(feature)
        key = self.proj_k(x)
        query = F.interpolate(self.proj_q(x), guide.shape[2:], mode='bilinear', align_corners=True)
        offset = self._offsets(query, feature.shape[2:]).to(query.dtype)
        pieces = lcm(self.num_heads, self.groups)
        scores = deformable_scores(query, key, self._of_pieces(offset), pieces)
        scores = scores.unflatten(1, (self.num_heads, -1, self.kernel_size**2)).sum(2)
        if self.relative_position_bias_table is not None:
            table = self.relative_position_bias_table[0, :, 0].to(query.dtype)  # (heads, K*K, D / heads)
            heads = query.unflatten(1, (self.num_heads, -1))
            scores = scores + torch.einsum('nmdhw,mtd->nmthw', heads, table)
        scale = (query.shape[1] // self.num_heads) ** -0.5
        return (scores * scale).softmax(2), offset

    def _offsets(self, query: Tensor, cells: tuple[int, int]) -> Tensor:
        """From the cells, in positions of the feature: ``(N, groups, K*K * 2, H, W)``, ``x`` before ``y``."""
        size, side = query.shape[2:], self.kernel_size
        predicted = self.conv_offset(query.unflatten(1, (self.groups, -1)).flatten(0, 1))
        predicted = full_precision(predicted).unflatten(0, (-1, self.groups)).unflatten(2, (side, side, 2))
        steps = torch.arange(side, device=query.device, dtype=predicted.dtype) - side // 2
        y, x = (self.offset_range * predicted.tanh()).unbind(4)
        y = y + steps[:, None, None, None]
        x = x + steps[:, None, None]
        (h, w), (height, width) = cells, size
        x = x * ((w - 1) / max(width - 1, 1)) + aligned_shift(width, w, x)
        y = y * ((h - 1) / max(height - 1, 1)) + aligned_shift(height, h, y)[:, None]
        return torch.stack([x, y], 4).flatten(2, 4)

    def _of_pieces(self, offset: Tensor) -> Tensor:
        return offset.repeat_interleave(lcm(self.num_heads, self.groups) // self.groups, 1).flatten(1, 2)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        for name in ('layer_norm', 'conv_offset.1'):
            rename_prefix(state_dict, f'{prefix}{name}.norm.', f'{prefix}{name}.')
