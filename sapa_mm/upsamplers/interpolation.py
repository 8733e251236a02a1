# SPDX-License-Identifier: Apache-2.0
"""Interpolation, the baseline of all tables, in the shape of an upsampler."""

from torch import Tensor
from torch.nn import functional as F

from ..registry import MODELS
from .base import BaseUpsampler


@MODELS.register_module()
class Nearest(BaseUpsampler):
    """Each position takes the feature of the cell it lies in: ``out[y, x] = feature[floor(y h / H), floor(x w / W)]``.

    This is ``F.interpolate(mode='nearest')``, the step of FPN, of any ratio, with the cell rounded as there (in
    float32). No parameters and no multiplications.

    Args:
        in_channels (int): Channels of the feature, and of the result.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        init_cfg (dict or list[dict], optional): As any mmengine module.

    Raises:
        ValueError: If a channel count is not a positive integer.
    """

    needs_guide = False

    def __init__(
        self, in_channels: int, guide_channels: int | None = None, init_cfg: dict | list[dict] | None = None
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        self.check_inputs(feature, guide)
        return F.interpolate(feature, guide.shape[2:], mode='nearest')


@MODELS.register_module()
class Bilinear(BaseUpsampler):
    """Each position mixes the four features around it by distance: ``F.interpolate(mode='bilinear')``.

    The step of the SegFormer and Mask2Former heads, of any ratio. No parameters; the four multiplications per output
    value are counted in no published table.

    Args:
        in_channels (int): Channels of the feature, and of the result.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        align_corners (bool): Whether the centres, not the edges, of the corner pixels of both maps fall together.
            Defaults to False.
        init_cfg (dict or list[dict], optional): As any mmengine module.

    Raises:
        ValueError: If a channel count is not a positive integer.
    """

    needs_guide = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        align_corners: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        self.align_corners = align_corners

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        self.check_inputs(feature, guide)
        return F.interpolate(feature, guide.shape[2:], mode='bilinear', align_corners=self.align_corners)
