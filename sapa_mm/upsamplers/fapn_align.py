# SPDX-License-Identifier: Apache-2.0
"""FaPN's feature alignment: a deformable convolution of the enlarged feature beside a selected lateral."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import deformable_assembly
from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, require_choice
from .sampling import full_precision

#: Groups of channels of the deformable convolution, each with points of its own.
GROUPS = 8
#: Its kernel is 3x3.
SIDE = 3
POINTS = SIDE**2


@MODELS.register_module()
class FaPNAlign(BaseUpsampler):
    r"""Feature-aligned pyramid network: the feature is moved to where the guide says it belongs.

    With ``y`` the guide, ``x`` the feature and ``up`` bilinear interpolation::

        lateral = conv1x1(y * (1 + sigmoid(conv1x1(global mean of y))))
        o       = conv1x1([lateral, 2 up(x)])
        aligned = relu(deformable conv3x3 of up(x), offsets and masks = conv3x3(o))
        out     = aligned + lateral

    The deformable convolution (DCNv2) has 8 groups of channels with nine points each, bilinear samples that are 0
    outside the map, weighted by masks between 0 and 1, and starts, its offsets 0, as a convolution with half its
    weights.

    It brings its own lateral, so :meth:`fuse` gives ``aligned + lateral`` where others add to the guide, and
    :meth:`forward` gives ``aligned`` alone. Any size of guide works.

    State dicts of the published ``FeatureAlign_V2`` load. Nothing but this package's operators is used, so that it runs
    on a CPU and in bfloat16.

    Args:
        in_channels (int): Channels ``C`` of the feature and of the result, divisible by 8; the authors' ``out_nc``.
        guide_channels (int, optional): Channels ``Cy`` of the guide; ``in_nc``. Defaults to ``in_channels``.
        norm (str, optional): ``'group'``, GroupNorm of 32 groups of ``o``, as the published models have it, or None.
            Defaults to None, as in the published module.
        init_cfg (dict or list[dict], optional): Initialisation on top of this one.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``C`` channels of the feature and ``Cy`` of the guide.

        - Parameters: ``Cy^2 + Cy C + 2 C^2 + 9 C^2 + C + 216 (9 C + 1)``, with the norm ``2 C`` more. 1,350,104 for 256
          channels.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``4 (Cy C + 11 C^2 + 1944 C)``, and ``180 C`` for the sampling; once per image ``Cy^2`` more.

    Source: https://arxiv.org/abs/2108.07058
    """

    variants = {'FaPN': {}}

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        norm: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        require_choice('norm', norm, ('group', None))
        if in_channels % GROUPS:
            raise ValueError(f'in_channels must be divisible by the {GROUPS} groups, got {in_channels}')
        if norm == 'group' and in_channels % 32:
            raise ValueError(f"norm='group' has 32 groups and needs in_channels divisible by 32, got {in_channels}")
        self.lateral_conv = Selection(self.guide_channels, in_channels)
        self.offset = nn.Conv2d(2 * in_channels, in_channels, 1, bias=False)
        self.offset_norm = nn.GroupNorm(32, in_channels) if norm == 'group' else nn.Identity()
        self.dcpack_L2 = DeformableConv(in_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch initialises convolutions, offsets and masks 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
                module.reset_parameters()
        nn.init.zeros_(self.dcpack_L2.conv_offset_mask.weight)
        nn.init.zeros_(self.dcpack_L2.conv_offset_mask.bias)

    def forward(self, feature: Tensor, guide: Tensor, fused: bool = False) -> Tensor:
        """Upsample ``feature`` to the size of ``guide``.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.
            fused: Add the lateral, as :meth:`fuse` does.

        Returns:
            ``(N, in_channels, H, W)``, not negative without the lateral.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        self.check_inputs(feature, guide)
        enlarged = F.interpolate(feature, guide.shape[2:], mode='bilinear', align_corners=False)
        lateral = self.lateral_conv(guide)
        where = self.offset_norm(self.offset(torch.cat([lateral, 2 * enlarged], 1)))
        aligned = self.dcpack_L2(enlarged, where).relu()
        return aligned + lateral if fused else aligned

    def fuse(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The sum of the upsampled feature and the lateral that was made of the guide."""
        return self(feature, guide, fused=True)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        rename_prefix(state_dict, f'{prefix}offset.norm.', f'{prefix}offset_norm.')


class Selection(nn.Module):
    """Raise some channels by what the whole map says of them, then project."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_atten = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, guide: Tensor) -> Tensor:
        gate = self.conv_atten(guide.mean((2, 3), keepdim=True)).sigmoid()
        return self.conv(guide + guide * gate)


class DeformableConv(nn.Conv2d):
    """Modulated deformable 3x3 convolution whose offsets and masks come from another map; parameters of mmcv's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, SIDE, padding=1)
        self.conv_offset_mask = nn.Conv2d(channels, 3 * GROUPS * POINTS, SIDE, padding=1)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        offset, mask = full_precision(self.conv_offset_mask(where)).split([2 * GROUPS * POINTS, GROUPS * POINTS], 1)
        # (y, x) of every point of every group, from the point's own place in the 3x3 window
        offset = offset.unflatten(1, (GROUPS, POINTS, 2))
        steps = torch.arange(SIDE, device=x.device, dtype=offset.dtype) - 1
        window = torch.stack(torch.meshgrid(steps, steps, indexing='ij'), -1).flatten(0, 1)
        offset = (offset + window[:, :, None, None]).flip(3).to(x.dtype)
        mask = mask.sigmoid().unflatten(1, (GROUPS, POINTS))
        # Each point of the window is sampled alone: the sum over them has a matrix for every one.
        samples = [deformable_assembly(x, mask[:, :, n], offset[:, :, n].flatten(1, 2), GROUPS) for n in range(POINTS)]
        weight = self.weight.flatten(2).transpose(1, 2).flatten(1)[:, :, None, None]
        return F.conv2d(torch.cat(samples, 1), weight, self.bias)
