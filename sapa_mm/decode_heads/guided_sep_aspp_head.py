# SPDX-License-Identifier: Apache-2.0
"""Head of DeepLabV3+ whose step to the fine level is guided by it."""

import torch
from mmengine.model import ModuleList
from mmseg.models.decode_heads import DepthwiseSeparableASPPHead
from torch import Tensor

from ..registry import MODELS
from ..upsamplers import build_upsampler


@MODELS.register_module()
class GuidedDepthwiseSeparableASPPHead(DepthwiseSeparableASPPHead):
    """DepthwiseSeparableASPPHead of mmseg, the head of DeepLabV3+, with an upsampler in its decoder.

    ``upsamplers[0].pair(feature, guide)``, for most ``upsamplers[0](feature, guide)`` and the guide as it is, replaces
    what is concatenated: the resized result of the atrous pyramid, of ``channels`` channels, and the projected
    fine level, of ``c1_channels``. An upsampler that compares both without projections needs both numbers equal. The
    step is of four in most models, of eight in some. The resize of the pooled image, one position, stays.

    All other parameters have the names of the parent, whose checkpoints load.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.
        **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
        ValueError: If ``upsample_cfg`` is given and ``c1_in_channels`` is 0: there is no fine level.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if upsample_cfg is not None:
            if self.c1_bottleneck is None:
                raise ValueError('upsample_cfg needs a fine level as guide, got c1_in_channels=0')
            guide_channels = self.c1_bottleneck.out_channels
            self.upsamplers = ModuleList([build_upsampler(upsample_cfg, self.channels, guide_channels)])

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Score every class at the fine level.

        Args:
            inputs: Backbone maps, any sizes; the first is the fine level.

        Returns:
            Logits, ``(N, num_classes, H, W)`` with the size of the first map.
        """
        if self.upsamplers is None:
            return super().forward(inputs)
        feature, guide = self._forward_feature(inputs), self.c1_bottleneck(inputs[0])
        return self.cls_seg(self.sep_bottleneck(torch.cat(self.upsamplers[0].pair(feature, guide), 1)))
