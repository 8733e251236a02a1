# SPDX-License-Identifier: Apache-2.0
"""Head of Semantic FPN that reaches the finest level in guided steps of two."""

from mmengine.model import ModuleList
from mmseg.models.decode_heads import FPNHead
from mmseg.models.utils import Upsample
from torch import Tensor

from ..registry import MODELS
from ..upsamplers import build_upsampler


@MODELS.register_module()
class GuidedFPNHead(FPNHead):
    """FPNHead of mmseg, the head of Semantic FPN, with an upsampler at every step of two.

    The branch of level ``n`` climbs to the finest in as many steps as it has convolutions. Each step is guided by what
    the first convolution makes of the level that it reaches; that of the finest level is also the map that the branches
    are added to. No step is shared: four levels have six upsamplers, numbered from the first step of the second level.
    The branches are many to one guide, so that the parent's sum stays and ``fuse`` is not used.

    All other parameters have the names of the parent, whose checkpoints load. With bilinear interpolation it is the
    parent where every size is twice the next; where it is not, each step here gives the size of its level.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's interpolation. Defaults to None.
        **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
        ValueError: If ``upsample_cfg`` is given and ``feature_strides`` leave out a power of two: a step would have no
            guide.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if upsample_cfg is not None:
            strides = list(self.feature_strides)
            if strides != [strides[0] * 2**i for i in range(len(strides))]:
                raise ValueError(f'upsample_cfg needs feature_strides that double at every level, got {strides}')
            steps = len(strides) * (len(strides) - 1) // 2
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, self.channels, self.channels) for _ in range(steps)
            )

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Score every class at the finest level.

        Args:
            inputs: Maps of the pyramid, finest first, any sizes.

        Returns:
            Logits, ``(N, num_classes, H, W)`` with the size of the finest map.
        """
        if self.upsamplers is None:
            return super().forward(inputs)
        levels = self._transform_inputs(inputs)
        guides = [branch[0](x) for branch, x in zip(self.scale_heads, levels)]
        upsamplers = iter(self.upsamplers)
        output = guides[0]
        for i in range(1, len(levels)):
            x, finer = guides[i], reversed(guides[:i])
            for layer in self.scale_heads[i][1:]:
                x = next(upsamplers)(x, next(finer)) if isinstance(layer, Upsample) else layer(x)
            output = output + x
        return self.cls_seg(output)
