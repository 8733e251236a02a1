# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid whose top-down steps are guided by the level they are added to."""

from mmengine.model import ModuleList
from torch import Tensor
from torch.nn import functional as F

try:
    from mmdet.models.necks import FPN
except ImportError:  # mmseg alone is enough: its FPN has the same arguments and parameters
    from mmseg.models.necks import FPN

from ..registry import MODELS
from ..state_dict import rename_prefix
from ..upsamplers import build_upsampler


@MODELS.register_module()
class GuidedFPN(FPN):
    """FPN of mmdet (of mmseg where mmdet is missing) with an upsampler at every top-down step.

    ``lateral[i] + upsamplers[i](lateral[i + 1], lateral[i])`` replaces the addition of the interpolated level. All
    other parameters have the names of the parent, whose checkpoints load; the key prefix ``upsample_modules`` of the
    published detection experiments loads too.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None, or the parent's arguments of ``F.interpolate`` (no ``type``), is the parent's step.
            Defaults to None.
        *args, **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, **kwargs) -> None:
        guided = upsample_cfg is not None and 'type' in upsample_cfg
        if upsample_cfg is not None and not guided:
            _require_interpolation(upsample_cfg)
            kwargs['upsample_cfg'] = upsample_cfg
        super().__init__(*args, **kwargs)
        self.upsamplers = None
        if guided:
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, self.out_channels, self.out_channels)
                for _ in range(len(self.lateral_convs) - 1)
            )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: One map per backbone level, high resolution first, any sizes.

        Returns:
            ``num_outs`` maps of ``out_channels`` channels, high resolution first.
        """
        if self.upsamplers is None:
            return super().forward(inputs)
        if len(inputs) != self.num_ins:
            raise ValueError(f'GuidedFPN was built for {self.num_ins} levels, got {len(inputs)}')
        used = inputs[self.start_level : self.backbone_end_level]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used)]
        for i in reversed(range(len(self.upsamplers))):
            laterals[i] = laterals[i] + self.upsamplers[i](laterals[i + 1], laterals[i])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]

        source = dict(on_input=used[-1], on_lateral=laterals[-1], on_output=outs[-1])
        for i in range(len(outs), self.num_outs):
            if not self.add_extra_convs:
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
            elif i == len(laterals):
                outs.append(self.fpn_convs[i](source[self.add_extra_convs]))
            else:
                outs.append(self.fpn_convs[i](outs[-1].relu() if self.relu_before_extra_convs else outs[-1]))
        return tuple(outs)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        rename_prefix(state_dict, f'{prefix}upsample_modules.', f'{prefix}upsamplers.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _require_interpolation(upsample_cfg: dict) -> None:
    """Without a ``type`` the parent hands the dict to ``F.interpolate``, which would refuse it at the first image."""
    known = ('mode', 'scale_factor', 'align_corners', 'recompute_scale_factor', 'antialias')
    for name in upsample_cfg:
        if name not in known:
            raise TypeError(
                f"upsample_cfg needs a 'type' (an upsampler) or options of F.interpolate among {known}, got {name!r}"
            )
