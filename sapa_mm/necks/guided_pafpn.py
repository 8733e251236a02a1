# SPDX-License-Identifier: Apache-2.0
"""Path aggregation network whose top-down steps are guided by the level they are added to."""

from mmdet.models.necks import PAFPN
from torch import Tensor

from ..registry import MODELS
from .guided_fpn import GuidedFPN


@MODELS.register_module()
class GuidedPAFPN(GuidedFPN, PAFPN):
    """PAFPN of mmdet with an upsampler at every top-down step.

    As :class:`GuidedFPN`, with the parent's bottom-up path from the finest output to the coarsest. All other parameters
    have the names of the parent, whose checkpoints load.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is the parent's nearest interpolation. Defaults to None.
        *args, **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
        TypeError: If ``extra_in_path`` of :class:`GuidedFPN` is given.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        if upsample_cfg is not None and 'type' not in upsample_cfg:
            raise TypeError(
                f"upsample_cfg needs a 'type', as PAFPN has no options of interpolation, got {dict(upsample_cfg)}"
            )
        if 'extra_in_path' in kwargs:
            raise TypeError('PAFPN has its own levels beyond the backbone: GuidedPAFPN takes no extra_in_path')
        super().__init__(*args, upsample_cfg=upsample_cfg, **kwargs)

    def _outputs(self, laterals: list[Tensor]) -> list[Tensor]:
        paths = super()._outputs(laterals)
        for i, downsample in enumerate(self.downsample_convs):
            paths[i + 1] = paths[i + 1] + downsample(paths[i])
        return [paths[0], *(conv(x) for conv, x in zip(self.pafpn_convs, paths[1:]))]
