# SPDX-License-Identifier: Apache-2.0
"""Mask head of Mask R-CNN with an upsampler of this package."""

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor

from ..registry import MODELS
from ..upsamplers import BaseUpsampler, build_upsampler
from ..upsamplers.base import upsampler_class


@MODELS.register_module()
class GuidedMaskHead(FCNMaskHead):
    """``FCNMaskHead`` of mmdet whose map may be upsampled by any upsampler that needs no guide.

    mmdet's own ``carafe`` has the same parameters, whose checkpoints load, but runs on CUDA with mmcv's operators only.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.CARAFE')``, which gets its
            channels here and upsamples by its ``scale_factor``, 2 if it has none; or the parent's. None is the
            parent's deconvolution. Defaults to None.
        *args, **kwargs: As the parent.

    Raises:
        ValueError: If the upsampler needs a guide: there is none of a region's features.
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        ours = upsampler_class(upsample_cfg) is not None
        if upsample_cfg is not None:
            kwargs['upsample_cfg'] = dict(type=None) if ours else upsample_cfg
        super().__init__(*args, **kwargs)
        if ours:
            channels = self.conv_out_channels if self.num_convs else self.in_channels
            self.upsample = build_upsampler(upsample_cfg, channels, channels)
            if self.upsample.needs_guide:
                raise ValueError(f'a mask head has no guide, which {upsample_cfg["type"]} needs')

    def forward(self, x: Tensor) -> Tensor:
        """Mask logits ``(N, classes, s h, s w)`` of region features ``(N, in_channels, h, w)``."""
        if not isinstance(self.upsample, BaseUpsampler):
            return super().forward(x)
        for conv in self.convs:
            x = conv(x)
        scale = getattr(self.upsample, 'scale_factor', 2)
        return self.conv_logits(self.upsample(x, scale_factor=scale))
