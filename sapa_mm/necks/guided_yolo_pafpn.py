# SPDX-License-Identifier: Apache-2.0
"""The necks of YOLOX and RTMDet whose top-down steps are guided by the level they are concatenated with."""

import torch
from mmdet.models.necks import YOLOXPAFPN, CSPNeXtPAFPN
from mmengine.model import ModuleList
from torch import Tensor

from ..registry import MODELS
from ..upsamplers import build_upsampler
from .interpolation import is_interpolation


class _GuidedPath:
    """The two paths that both necks have, with an upsampler at every top-down step."""

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        guided = upsample_cfg is not None and not is_interpolation(upsample_cfg)
        if upsample_cfg is not None and not guided:
            kwargs['upsample_cfg'] = upsample_cfg
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if guided:  # coarsest step first, like the parent's layers
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, channels, channels) for channels in self.in_channels[-2::-1]
            )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mix the levels.

        Args:
            inputs: One map per backbone level, high resolution first, each half the size of the one before, rounded up;
                without an upsampler the sizes have to be exact.

        Returns:
            As many maps of ``out_channels`` channels and the same sizes.
        """
        if self.upsamplers is None:
            return super().forward(inputs)
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'{type(self).__name__} was built for {len(self.in_channels)} levels, got {len(inputs)}')
        top, reduced = inputs[-1], []
        for i, guide in enumerate(reversed(inputs[:-1])):
            reduced.append(self.reduce_layers[i](top))
            top = self.top_down_blocks[i](torch.cat(self.upsamplers[i].pair(reduced[i], guide), 1))
        outs = [top]
        for downsample, block, lateral in zip(self.downsamples, self.bottom_up_blocks, reversed(reduced)):
            outs.append(block(torch.cat([downsample(outs[-1]), lateral], 1)))
        return tuple(conv(x) for conv, x in zip(self.out_convs, outs))


@MODELS.register_module()
class GuidedYOLOXPAFPN(_GuidedPath, YOLOXPAFPN):
    """YOLOXPAFPN of mmdet with an upsampler at every top-down step.

    ``upsamplers[i].pair(feature, guide)``, for most ``upsamplers[i](feature, guide)`` and the guide as it is, replaces
    what is concatenated: the resized map and the backbone's level. The parent's blocks weigh the two, so
    nothing is added here. All other parameters have the names of the parent, whose checkpoints load.

    Args:
        *args, **kwargs: As the parent.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None, or the parent's arguments of ``nn.Upsample`` (no ``type``), is the parent's step.
            Defaults to None.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """


@MODELS.register_module()
class GuidedCSPNeXtPAFPN(_GuidedPath, CSPNeXtPAFPN):
    """CSPNeXtPAFPN of mmdet, the neck of RTMDet, with an upsampler at every top-down step.

    As :class:`GuidedYOLOXPAFPN`.

    Args:
        *args, **kwargs: As the parent.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None, or the parent's arguments of ``nn.Upsample`` (no ``type``), is the parent's step.
            Defaults to None.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """
