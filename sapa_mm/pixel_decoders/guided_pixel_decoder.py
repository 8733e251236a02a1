# SPDX-License-Identifier: Apache-2.0
"""MaskFormer's pixel decoders whose top-down steps are guided by the level they are added to."""

from abc import ABCMeta

import torch
from mmdet.models.layers import PixelDecoder, TransformerEncoderPixelDecoder
from mmengine.model import ModuleList, caffe2_xavier_init
from torch import Tensor
from torch.nn import functional as F

from ..ops.autocast import outside_autocast
from ..registry import MODELS
from ..upsamplers import build_upsampler


class _GuidedPath:
    """The top-down path that both pixel decoders have, with an upsampler at every step."""

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if upsample_cfg is not None:
            channels = self.mask_feature.in_channels
            self.upsamplers = ModuleList(build_upsampler(upsample_cfg, channels, channels) for _ in self.lateral_convs)

    def init_weights(self) -> None:
        """Initialise as the parent means to, and the upsamplers by their own rule."""
        super().init_weights()
        # Of the convolutions that are initialised alike in the published decoder, the parent's loop stops before the
        # last pair, and its call for the coarsest level gets a ConvModule, whose weight it does not find.
        left_out = [*self.lateral_convs[-1:], *self.output_convs[-1:], self.last_feat_conv]
        for conv in left_out:
            if conv is not None:  # the transformer encoder replaces that of the coarsest level
                caffe2_xavier_init(conv.conv, bias=0)
        if self.upsamplers is not None:
            self.upsamplers.init_weights()

    @outside_autocast
    def forward(self, feats: list[Tensor], batch_img_metas: list[dict]) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            feats: Backbone maps, finest first, any sizes.
            batch_img_metas: Of each image ``img_shape`` and ``batch_input_shape``, (height, width) without and with
                padding. Only the transformer encoder reads them.

        Returns:
            The mask feature, ``(N, out_channels, H, W)`` with the size of the finest map, and the memory, which has
            the size of the coarsest: that map itself or what the transformer encoder made of it.
        """
        if self.upsamplers is None:
            return super().forward(feats, batch_img_metas)
        y, memory = self._encode(feats[-1], batch_img_metas)
        for i in reversed(range(len(self.lateral_convs))):
            lateral = self.lateral_convs[i](feats[i])
            y = self.output_convs[i](self.upsamplers[i].fuse(y, lateral))
        return self.mask_feature(y), memory


class _EqualsParent(ABCMeta):
    """Makes a child of PixelDecoder equal to it.

    The MaskFormer heads of mmdet and mmseg project the memory for their transformer if ``type(pixel_decoder) ==
    PixelDecoder``. With another answer a child's memory would reach the transformer with the backbone's channels, and
    the projection in the parent's checkpoints would find no place.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is PixelDecoder

    __hash__ = ABCMeta.__hash__


@MODELS.register_module()
class GuidedPixelDecoder(_GuidedPath, PixelDecoder, metaclass=_EqualsParent):
    """PixelDecoder of mmdet with an upsampler at every top-down step.

    ``upsamplers[i].fuse(y, lateral)``, for most ``lateral + upsamplers[i](y, lateral)``, replaces the addition of the
    interpolated map: three steps, stride 32 to 4, in the published model. All other parameters have the names of the
    parent, whose checkpoints load. Inside autocast it works in float32, as the published decoder does.

    Args:
        *args, **kwargs: As the parent.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def _encode(self, coarsest: Tensor, batch_img_metas: list[dict]) -> tuple[Tensor, Tensor]:
        return self.last_feat_conv(coarsest), coarsest


@MODELS.register_module()
class GuidedTransformerEncoderPixelDecoder(_GuidedPath, TransformerEncoderPixelDecoder):
    """TransformerEncoderPixelDecoder of mmdet with an upsampler at every top-down step.

    As :class:`GuidedPixelDecoder`, starting from what the transformer encoder makes of the coarsest level.

    Args:
        *args, **kwargs: As the parent.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def _encode(self, coarsest: Tensor, batch_img_metas: list[dict]) -> tuple[Tensor, Tensor]:
        """The parent's forward up to its top-down path, which it has inline: start of the path, memory."""
        size = coarsest.shape[2:]
        padding = coarsest.new_ones((len(coarsest), 1, *batch_img_metas[0]['batch_input_shape']))
        for image, meta in zip(padding, batch_img_metas):
            height, width = meta['img_shape']
            image[:, :height, :width] = 0
        padding = F.interpolate(padding, size=size, mode='nearest').to(torch.bool).squeeze(1)
        memory = self.encoder(
            query=self.encoder_in_proj(coarsest).flatten(2).transpose(1, 2),
            query_pos=self.positional_encoding(padding).flatten(2).transpose(1, 2),
            key_padding_mask=padding.flatten(1),
        )
        memory = memory.transpose(1, 2).unflatten(2, tuple(size))
        return self.encoder_out_proj(memory), memory
