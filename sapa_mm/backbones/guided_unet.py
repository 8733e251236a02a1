# SPDX-License-Identifier: Apache-2.0
"""U-Net whose decoder is guided by the encoder's maps."""

import torch
from mmengine.model import ModuleDict
from mmseg.models.backbones import UNet
from torch import Tensor

from ..registry import MODELS
from ..upsamplers import build_upsampler
from ..upsamplers.base import upsampler_class


@MODELS.register_module()
class GuidedUNet(UNet):
    """UNet of mmseg with an upsampler at every step of its decoder.

    Step ``i`` takes the decoder's map, of ``2^(i + 1)`` times ``base_channels``, to the encoder's map ``i``, of ``2^i``
    times as many, its guide. ``upsamplers[i].pair(feature, guide)``, for most upsamplers ``upsamplers[i](feature,
    guide)`` and the guide as it is, replaces the resized map and the encoder's in the parent's step with its default
    ``InterpConv``: resize, 1x1 convolution with norm and activation, concatenation. An upsampler that compares both
    without projections needs as many channels in both maps and so ``conv_first``.

    All other parameters have the names of the parent with ``InterpConv``, whose checkpoints load. Images may have any
    size; the parent's must be divisible by the stride of the coarsest map.

    Args:
        *args, **kwargs: As the parent.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here; or the parent's, such as ``dict(type='DeconvModule')``. None is the parent's ``InterpConv``.
            Defaults to None.
        conv_first (bool): Convolve before the upsampler, as ``InterpConv`` with this option does. Defaults to False.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, conv_first: bool = False, **kwargs) -> None:
        guided = upsampler_class(upsample_cfg) is not None
        interpolation = dict(type='mmseg.InterpConv', conv_first=conv_first)
        super().__init__(*args, upsample_cfg=upsample_cfg if upsample_cfg and not guided else interpolation, **kwargs)
        self.conv_first = conv_first
        self.upsamplers = None
        if guided:
            # A step between maps of one size has no resize, and no upsampler.
            self.upsamplers = ModuleDict()
            for i, block in enumerate(self.decoder):
                if hasattr(block.upsample, 'interp_upsample'):
                    channels = self.base_channels * 2**i
                    in_channels = channels if conv_first else 2 * channels
                    self.upsamplers[str(i)] = build_upsampler(upsample_cfg, in_channels, channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode and decode.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            The maps of the decoder, coarsest first, the last ``(N, base_channels, H, W)`` if the first stage has stride
            one.
        """
        if self.upsamplers is None:
            return super().forward(x)
        encoded = []
        for stage in self.encoder:
            x = stage(x)
            encoded.append(x)
        outs = [x]
        for i in reversed(range(len(self.decoder))):
            outs.append(self._step(i, encoded[i], outs[-1]))
        return outs

    def _step(self, i: int, guide: Tensor, feature: Tensor) -> Tensor:
        block = self.decoder[i]
        if str(i) not in self.upsamplers:
            return block(guide, feature)
        upsampler = self.upsamplers[str(i)]
        convolve = block.upsample.interp_upsample[0 if self.conv_first else 1]
        if self.conv_first:
            upsampled, guide = upsampler.pair(convolve(feature), guide)
        else:
            upsampled, guide = upsampler.pair(feature, guide)
            upsampled = convolve(upsampled)
        return block.conv_block(torch.cat([guide, upsampled], dim=1))
