# SPDX-License-Identifier: Apache-2.0
"""Flow alignment: the feature is warped by a flow that is predicted from both levels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import deformable_assembly
from ..ops.maps import cell_of
from ..registry import MODELS
from .base import BaseUpsampler, require_choice, require_positive_int
from .sampling import aligned_shift, full_precision

GATES = (None, 'conv', 'pooled')


@MODELS.register_module()
class FlowAlign(BaseUpsampler):
    r"""Flow alignment module of SFNet: each position reads the feature where a predicted flow sends it.

    With ``y`` the guide, ``x`` the feature, ``m`` the channels that both are compressed to and ``up`` bilinear
    interpolation aligned at the corners::

        t      = up(down_h(x)),   l = down_l(y)
        flow   = conv3x3([t, l])                                          (x, y)
        warp_x = x at (j (w - 1) / (W - 1) + flow_x (w - 1) / (2 W), and likewise for the row)
        out    = warp_x

    sampled bilinearly, with zeros outside the map. With a gate the flow has four channels, the last two of which warp
    the guide, by ``flow (W - 1) / (2 W)`` positions of it, and the result is a blend of both::

        conv:    gate = sigmoid(conv3x3([t, l]))
        pooled:  gate = sigmoid(conv3x3([mean(t), mean(y), max(t), max(y)]))           over the channels
        out      = gate * warp_x + (1 - gate) * warp_y

    ``conv`` is SFNet's second version, ``pooled`` that of the released SFNet-Lite models. The blend takes the place of
    the sum with the guide: with a gate, :meth:`fuse` is :meth:`forward`.

    The definition holds for any pair of sizes. Parameter names are the published ones of ``AlignedModule``,
    ``AlignedModulev2`` and ``AlignedModulev2PoolingAtten``, whose state dicts load.

    Args:
        in_channels (int): Channels ``Cx`` of the feature and of the result.
        guide_channels (int, optional): Channels ``Cy`` of the guide. Defaults to ``in_channels``, and must equal it
            with a gate.
        embed_dims (int): Channels ``m`` of the compressed maps; the authors' ``outplane``. Defaults to 128.
        gate (str, optional): ``'conv'``, ``'pooled'`` or None. Defaults to None.
        init_cfg (dict or list[dict], optional): Initialisation on top of torch's own, which the authors left.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide and ``m`` of ``embed_dims``.

        - Parameters: ``m (Cx + Cy) + 36 m``. ``conv``: ``54 m`` more. ``pooled``: ``36 m + 36`` more. 70,144 for 256
          channels.
        - Multiply-accumulates per position of the feature, at twice its size: ``Cx m + 4 Cy m + 144 m``, and ``20 Cx``
          for the sampling. ``conv``: ``216 m + 20 Cy`` more. ``pooled``: ``144 m + 144 + 20 Cy`` more.

    Source: https://arxiv.org/abs/2002.10120, https://arxiv.org/abs/2207.04415
    """

    variants = {'FlowAlign': {}, 'FlowAlign v2': dict(gate='conv'), 'FlowAlign v2, pooled': dict(gate='pooled')}

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        embed_dims: int = 128,
        gate: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        require_positive_int('embed_dims', embed_dims)
        require_choice('gate', gate, GATES)
        if gate is not None and self.guide_channels != in_channels:
            raise ValueError(
                'a gate blends guide and feature, which need the same number of channels, '
                f'got {self.guide_channels} and {in_channels}'
            )
        self.gate = gate
        self.down_h = nn.Conv2d(in_channels, embed_dims, 1, bias=False)
        self.down_l = nn.Conv2d(self.guide_channels, embed_dims, 1, bias=False)
        self.flow_make = nn.Conv2d(2 * embed_dims, 2 if gate is None else 4, 3, padding=1, bias=False)
        if gate is not None:
            channels = 4 if gate == 'pooled' else 2 * embed_dims
            self.flow_gate = nn.Sequential(nn.Conv2d(channels, 1, 3, padding=1, bias=False), nn.Sigmoid())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch initialises convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature`` to the size of ``guide``; with a gate, blended with the warped guide.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        self.check_inputs(feature, guide)
        compressed, low = self._compress(feature, guide)
        both = torch.cat([compressed, low], 1)
        flow = full_precision(self.flow_make(both))
        out = warp(feature, flow[:, :2])
        if self.gate is None:
            return out
        if self.gate == 'pooled':
            means = [x.mean(1, keepdim=True) for x in (compressed, guide)]
            maxima = [x.max(1, keepdim=True).values for x in (compressed, guide)]
            both = torch.cat(means + maxima, 1)
        gate = self.flow_gate(both)
        return gate * out + (1 - gate) * warp(guide, flow[:, 2:])

    def fuse(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The sum with the guide; with a gate, the blend that :meth:`forward` gives."""
        return super().fuse(feature, guide) if self.gate is None else self(feature, guide)

    def positions(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Where :meth:`forward` reads the feature, ``(N, 1, 2, H, W)``: ``x``, ``y`` in positions of the feature."""
        self.check_inputs(feature, guide)
        flow = full_precision(self.flow_make(torch.cat(self._compress(feature, guide), 1)))
        size, cells = guide.shape[2:], feature.shape[2:]
        rows, columns = (cell_of(s, c, flow.device) for s, c in zip(size, cells))
        cell = torch.stack(torch.meshgrid(columns, rows, indexing='xy'))
        return (offset_of(flow[:, :2], cells) + cell)[:, None]

    def _compress(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        compressed = F.interpolate(self.down_h(feature), guide.shape[2:], mode='bilinear', align_corners=True)
        return compressed, self.down_l(guide)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """``x``, ``(N, C, h, w)``, where ``flow``, ``(N, 2, H, W)``, sends each position: ``(N, C, H, W)``."""
    offset = offset_of(flow, x.shape[2:])
    return deformable_assembly(x, torch.ones_like(offset[:, :1]), offset.to(x.dtype))


def offset_of(flow: Tensor, cells: tuple[int, int]) -> Tensor:
    """From the cells of a map of size ``cells``, in positions of it; a flow of 1 is half a position of the output."""
    (height, width), (h, w) = flow.shape[2:], cells
    x = flow[:, 0] * ((w - 1) / (2 * width)) + aligned_shift(width, w, flow)
    y = flow[:, 1] * ((h - 1) / (2 * height)) + aligned_shift(height, h, flow)[:, None]
    return torch.stack([x, y], 1)
