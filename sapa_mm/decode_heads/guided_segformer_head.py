# SPDX-License-Identifier: Apache-2.0
"""SegFormer head that reaches stride 4 in guided steps of two."""

import torch
from mmcv.cnn import ConvModule
from mmengine.model import ModuleList
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.utils import resize
from torch import Tensor

from ..registry import MODELS
from ..state_dict import LoadsPublishedLayout, rename_prefix
from ..upsamplers import build_upsampler


@MODELS.register_module()
class GuidedSegformerHead(LoadsPublishedLayout, SegformerHead):
    """SegformerHead of mmseg whose resizes to the finest level are chains of guided upsamplers.

    With the projected levels ``E1`` (finest, stride 4) to ``En`` (coarsest), level ``n`` climbs ``n - 1`` steps, each
    guided by the next finer level. No step is shared: four levels have six upsamplers, numbered from the coarsest
    level's first step to the single step of ``E2``, as in the published checkpoints.

    The parent's checkpoints load, and so do the published ones (``linear_c1`` to ``linear_c4``, ``linear_fuse``,
    ``linear_pred``; their unused ``conv_seg`` is left out) if ``published_form`` is set.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.
        published_form (bool): The head that the published numbers were trained with: linear projections without
            normalisation and activation, concatenation from the coarsest level to the finest. The parent has both
            after each projection and concatenates finest first. Defaults to False.
        **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def __init__(self, upsample_cfg: dict | None = None, published_form: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.published_form = published_form
        levels = len(self.in_channels)
        if published_form:
            self.convs = torch.nn.ModuleList(
                ConvModule(channels, self.channels, 1, act_cfg=None) for channels in self.in_channels
            )
        self.upsamplers = None
        if upsample_cfg is not None:
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, self.channels, self.channels) for _ in range(levels * (levels - 1) // 2)
            )

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Score every class at the finest level.

        Args:
            inputs: Backbone maps, finest first, any sizes.

        Returns:
            Logits, ``(N, num_classes, H, W)`` with the size of the finest map.
        """
        if self.upsamplers is None and not self.published_form:
            return super().forward(inputs)
        levels = [conv(x) for conv, x in zip(self.convs, self._transform_inputs(inputs))]
        finest_size = levels[0].shape[2:]
        outs = []  # coarsest first
        upsamplers = iter(self.upsamplers or ())
        for i in reversed(range(len(levels))):
            out = levels[i]
            if self.upsamplers is None:
                out = resize(out, size=finest_size, mode=self.interpolate_mode, align_corners=self.align_corners)
            else:
                for guide in reversed(levels[:i]):
                    out = next(upsamplers)(out, guide)
            outs.append(out)
        if not self.published_form:
            outs.reverse()
        return self.cls_seg(self.fusion_conv(torch.cat(outs, dim=1)))

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        if f'{prefix}linear_pred.weight' not in state_dict:
            return
        for kind in ('weight', 'bias'):
            state_dict.pop(f'{prefix}conv_seg.{kind}', None)
        rename_prefix(state_dict, f'{prefix}linear_pred.', f'{prefix}conv_seg.')
        rename_prefix(state_dict, f'{prefix}linear_fuse.', f'{prefix}fusion_conv.')
        for i in range(len(self.convs)):
            rename_prefix(state_dict, f'{prefix}linear_c{i + 1}.proj.', f'{prefix}convs.{i}.conv.')
            weight = state_dict.get(f'{prefix}convs.{i}.conv.weight')
            if weight is not None and weight.dim() == 2:
                state_dict[f'{prefix}convs.{i}.conv.weight'] = weight[:, :, None, None]
