# SPDX-License-Identifier: Apache-2.0
"""UPerNet head whose top-down steps are guided by the level they are added to."""

import torch
from mmengine.model import ModuleList
from mmseg.models.decode_heads import UPerHead
from mmseg.models.utils import resize
from torch import Tensor

from ..registry import MODELS
from ..state_dict import LoadsPublishedLayout, rename_prefix
from ..upsamplers import build_upsampler


@MODELS.register_module()
class GuidedUPerHead(LoadsPublishedLayout, UPerHead):
    """UPerHead of mmseg with an upsampler at every top-down step.

    ``upsamplers[i].fuse(lateral[i + 1], lateral[i])``, for most upsamplers ``lateral[i] + upsamplers[i](lateral[i + 1],
    lateral[i])``, replaces the addition of the resized level, whose coarsest is the result of the pyramid pooling. The
    resizes inside the pooling and before the fusion stay. All other parameters have the names of the parent, whose
    checkpoints load; the key prefix ``upsample_modules`` of the published experiments loads too.

    Args:
        *args, **kwargs: As the parent.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if upsample_cfg is not None:
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, self.channels, self.channels) for _ in self.lateral_convs
            )

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        """Fuse the levels.

        Args:
            inputs: Backbone maps, finest first, any sizes.

        Returns:
            ``(N, channels, H, W)`` with the size of the finest map.
        """
        if self.upsamplers is None:
            return super()._forward_feature(inputs)
        inputs = self._transform_inputs(inputs)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs)]
        laterals.append(self.psp_forward(inputs))
        for i in reversed(range(len(self.upsamplers))):
            laterals[i] = self.upsamplers[i].fuse(laterals[i + 1], laterals[i])
        finest, *coarser = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        coarser.append(laterals[-1])
        size, align_corners = finest.shape[2:], self.align_corners
        coarser = [resize(x, size=size, mode='bilinear', align_corners=align_corners) for x in coarser]
        return self.fpn_bottleneck(torch.cat([finest, *coarser], dim=1))

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        rename_prefix(state_dict, f'{prefix}upsample_modules.', f'{prefix}upsamplers.')
