# SPDX-License-Identifier: Apache-2.0
"""Mask2Former's pixel decoder with a guided step from its encoder to the finest level."""

import torch
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmengine.model import ModuleList
from torch import Tensor

from ..ops.autocast import outside_autocast
from ..registry import MODELS
from ..upsamplers import build_upsampler


@MODELS.register_module()
class GuidedMSDeformAttnPixelDecoder(MSDeformAttnPixelDecoder):
    """MSDeformAttnPixelDecoder of mmdet with an upsampler at every step below the transformer encoder.

    ``upsampler.fuse(out, lateral)``, for most ``lateral + upsampler(out, lateral)``, replaces the addition of the
    bilinearly resized map: one step, stride 8 to 4, in the published model. All other parameters have the names of the
    parent, whose checkpoints load. Inside autocast it works in float32, as the published decoder does.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.
        *args, **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if upsample_cfg is not None:
            channels = self.mask_feature.in_channels
            self.upsamplers = ModuleList(build_upsampler(upsample_cfg, channels, channels) for _ in self.lateral_convs)

    def init_weights(self) -> None:
        """Initialise as the parent, and the upsamplers by their own rule."""
        super().init_weights()
        if self.upsamplers is not None:
            self.upsamplers.init_weights()

    @outside_autocast
    def forward(self, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            feats: Backbone maps, finest first, any sizes.

        Returns:
            The mask feature, ``(N, out_channels, H, W)`` with the size of the finest map, and the ``num_outs``
            coarsest maps, coarsest first.
        """
        if self.upsamplers is None:
            return super().forward(feats)
        outs = self._encode(feats)
        # Steps are numbered like the parent's lateral and output convolutions, whose forward also reads them with the
        # index of the level: with more than one step, level i has number i, and the finest level comes last.
        for i in reversed(range(len(self.lateral_convs))):
            lateral = self.lateral_convs[i](feats[i])
            outs.append(self.output_convs[i](self.upsamplers[i].fuse(outs[-1], lateral)))
        return self.mask_feature(outs[-1]), outs[: self.num_outs]

    def _encode(self, feats: list[Tensor]) -> list[Tensor]:
        """The levels that the transformer encoder mixes, coarsest first: the parent's forward up to its top-down path.

        The parent has it inline with the path, so it stands here again.
        """
        levels = list(reversed(range(self.num_input_levels)))[: self.num_encoder_levels]
        sizes = [feats[level].shape[2:] for level in levels]
        batch, device = feats[0].shape[0], feats[0].device
        tokens, positions, masks, points = [], [], [], []
        for i, (level, size) in enumerate(zip(levels, sizes)):
            mask = torch.zeros((batch, *size), dtype=torch.bool, device=device)  # no padding
            position = self.postional_encoding(mask) + self.level_encoding.weight[i].view(1, -1, 1, 1)
            grid = self.point_generator.single_level_grid_priors(size, level, device=device)
            extent = torch.tensor(size[::-1], device=device) * self.strides[level]
            tokens.append(self.input_convs[i](feats[level]).flatten(2).transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
            masks.append(mask.flatten(1))
            points.append(grid / extent)
        shapes = torch.tensor(sizes, device=device)
        lengths = [height * width for height, width in sizes]
        reference_points = torch.cat(points)[None, :, None].repeat(batch, 1, self.num_encoder_levels, 1)
        memory = self.encoder(
            query=torch.cat(tokens, dim=1),
            query_pos=torch.cat(positions, dim=1),
            key_padding_mask=torch.cat(masks, dim=1),
            spatial_shapes=shapes,
            reference_points=reference_points,
            level_start_index=shapes.prod(1).cumsum(0) - shapes.prod(1),
            valid_ratios=reference_points.new_ones((batch, self.num_encoder_levels, 2)),
        )
        return [x.transpose(1, 2).unflatten(2, tuple(size)) for x, size in zip(memory.split(lengths, dim=1), sizes)]
