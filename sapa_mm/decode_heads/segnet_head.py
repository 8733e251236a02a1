# SPDX-License-Identifier: Apache-2.0
"""The decoder of SegNet, with max-unpooling or a guided upsampler at every stage."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import ModuleList, Sequential
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import MODELS
from ..upsamplers import build_upsampler


@MODELS.register_module()
class SegNetHead(BaseDecodeHead):
    """Mirror of :class:`sapa_mm.backbones.SegNetEncoder`: every stage upsamples, then convolves.

    Stage ``i`` brings its input to the size of level ``i`` of the encoder, the map before pooling, and gives the
    channels of level ``i - 1``; the last one, stage 0, gives ``channels``. A 3x3 convolution classifies.

    Args:
        in_channels (Sequence[int]): Channels of the encoder's maps before pooling, finest first, and, last, of the
            coarsest after pooling.
        in_index (Sequence[int]): Where they are among the encoder's outputs, as many as ``in_channels``.
        channels (int): Channels that the classifier sees.
        num_convs (Sequence[int]): 3x3 convolutions per stage, finest first, at least 1; the classifier is one more.
            Defaults to (1, 2, 3, 3, 3), the mirror of VGG-16.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is max-unpooling: each value returns to the place that the encoder's pooling took the
            maximum from, all else is 0. Defaults to None.
        **kwargs: As mmseg's ``BaseDecodeHead``.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
        ValueError: If ``num_convs`` does not fit ``in_channels``, or max-unpooling does not fit the levels.

    Source: https://arxiv.org/abs/1511.00561
    """

    def __init__(self, num_convs: Sequence[int] = (1, 2, 3, 3, 3), upsample_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(input_transform='multiple_select', **kwargs)
        *guides, top = self.in_channels
        if len(num_convs) != len(guides) or min(num_convs) < 1:
            raise ValueError(
                f'num_convs must have a positive number for each of the {len(guides)} levels before pooling, '
                f'got {tuple(num_convs)}'
            )
        if upsample_cfg is None and top != guides[-1]:
            raise ValueError(f'max-unpooling needs as many channels after pooling as before, got {top}, {guides[-1]}')
        inputs = [*guides[:-1], top]
        outputs = [self.channels, *guides[:-1]]
        self.stages = ModuleList(
            Sequential(*(self._conv(x, y if last else x) for last in [False] * (count - 1) + [True]))
            for count, x, y in zip(num_convs, inputs, outputs)
        )
        self.conv_seg = nn.Conv2d(self.channels, self.out_channels, 3, padding=1)
        self.upsamplers = None
        if upsample_cfg is not None:
            self.upsamplers = ModuleList(build_upsampler(upsample_cfg, x, guide) for x, guide in zip(inputs, guides))

    def _conv(self, in_channels: int, out_channels: int) -> ConvModule:
        layers = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        return ConvModule(in_channels, out_channels, 3, padding=1, **layers)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Score every class at the finest level.

        Args:
            inputs: The encoder's maps before pooling, finest first, and the coarsest after pooling. Any sizes, where
                the upsampler takes any; for max-unpooling each must be half the one before, rounded up.

        Returns:
            Logits, ``(N, num_classes, H, W)`` with the size of the finest map.
        """
        *guides, x = self._transform_inputs(inputs)
        for i in reversed(range(len(guides))):
            x = max_unpool(x, guides[i]) if self.upsamplers is None else self.upsamplers[i](x, guides[i])
            x = self.stages[i](x)
        return self.cls_seg(x)


def max_unpool(x: Tensor, pooled: Tensor) -> Tensor:
    """Put ``x`` where 2x2 max-pooling of ``pooled`` finds its maxima, and 0 elsewhere.

    The indices are recomputed instead of being handed from encoder to decoder: a backbone of mmseg gives maps only,
    and the pooling costs next to nothing beside the convolutions.

    Args:
        x: ``(N, C, ceil(H / 2), ceil(W / 2))``.
        pooled: ``(N, C, H, W)``, what the encoder pooled.

    Returns:
        ``(N, C, H, W)``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    maxima, places = F.max_pool2d(pooled, 2, ceil_mode=True, return_indices=True)
    if maxima.shape != x.shape:
        raise ValueError(f'pooling {tuple(pooled.shape)} gives {tuple(maxima.shape)}, but x has {tuple(x.shape)}')
    return F.max_unpool2d(x, places, 2, output_size=pooled.shape[2:])
