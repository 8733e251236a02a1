# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid whose top-down steps are guided by the level they are added to."""

import inspect
import warnings

from mmcv.cnn import ConvModule
from mmengine.model import ModuleList
from torch import Tensor
from torch.nn import functional as F

try:
    from mmdet.models.necks import FPN
except ImportError:  # mmseg alone is enough: its FPN has the same arguments and parameters
    from mmseg.models.necks import FPN

from ..registry import MODELS
from ..state_dict import LoadsPublishedLayout, rename_prefix
from ..upsamplers import build_upsampler
from .interpolation import is_interpolation


@MODELS.register_module()
class GuidedFPN(LoadsPublishedLayout, FPN):
    """FPN of mmdet (of mmseg where mmdet is missing) with an upsampler at every top-down step.

    ``upsamplers[i].fuse(lateral[i + 1], lateral[i])``, for most upsamplers ``lateral[i] + upsamplers[i](lateral[i + 1],
    lateral[i])``, replaces the addition of the interpolated level. All other parameters have the names of the parent,
    whose checkpoints load; the key prefix ``upsample_modules`` of the published detection experiments loads too.

    In the place of a PAFPN it is a pyramid without the bottom-up path, which :class:`GuidedPAFPN` keeps. A config does
    not show what stood there, so the warning comes when a checkpoint with the path's weights is loaded.

    With ``extra_in_path`` the levels beyond the backbone's take part in the top-down path, as in mmdet's
    ``FPN_CARAFE``, whose parameters have the same names: a strided 3x3 lateral on the backbone's last map, then on the
    extra lateral before, and a step and an output convolution for each. Some published detection tables count one.

    Args:
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None, or the parent's arguments of ``F.interpolate`` (no ``type``), is the parent's step.
            Defaults to None.
        extra_in_path (bool): Whether levels beyond the backbone's are part of the top-down path. Defaults to False,
            where they are computed below the finished pyramid, as ``add_extra_convs`` says.
        *args, **kwargs: As the parent.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
        ValueError: If ``extra_in_path`` is set beside ``add_extra_convs`` or without an extra level.
    """

    def __init__(self, *args, upsample_cfg: dict | None = None, extra_in_path: bool = False, **kwargs) -> None:
        guided = upsample_cfg is not None and not is_interpolation(upsample_cfg)
        if upsample_cfg is not None and not guided:
            kwargs['upsample_cfg'] = upsample_cfg
        super().__init__(*args, **kwargs)
        self.extra_in_path = extra_in_path
        if extra_in_path:
            self._add_extra_levels(inspect.signature(FPN).bind(*args, **kwargs).arguments)
        self.upsamplers = None
        if guided:
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, self.out_channels, self.out_channels)
                for _ in range(len(self.lateral_convs) - 1)
            )

    def _add_extra_levels(self, arguments: dict) -> None:
        """Append laterals and output convolutions with the layers that the parent was told to use."""
        extra = self.num_outs - len(self.lateral_convs)
        if self.add_extra_convs or extra < 1:
            raise ValueError(
                'extra_in_path needs add_extra_convs=False and more outputs than backbone levels, '
                f'got {self.add_extra_convs!r}, {self.num_outs} outputs and {len(self.lateral_convs)} levels'
            )
        layers = {name: arguments.get(name) for name in ('conv_cfg', 'norm_cfg', 'act_cfg')}
        lateral_layers = dict(layers, norm_cfg=None) if self.no_norm_on_lateral else layers
        for channels in [self.in_channels[-1]] + [self.out_channels] * (extra - 1):
            self.lateral_convs.append(
                ConvModule(channels, self.out_channels, 3, stride=2, padding=1, inplace=False, **lateral_layers)
            )
            self.fpn_convs.append(
                ConvModule(self.out_channels, self.out_channels, 3, padding=1, inplace=False, **layers)
            )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: One map per backbone level, high resolution first, any sizes.

        Returns:
            ``num_outs`` maps of ``out_channels`` channels, high resolution first.
        """
        if self.upsamplers is None and not self.extra_in_path:
            return super().forward(inputs)
        if len(inputs) != self.num_ins:
            raise ValueError(f'{type(self).__name__} was built for {self.num_ins} levels, got {len(inputs)}')
        used = inputs[self.start_level : self.backbone_end_level]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used)]
        for conv in self.lateral_convs[len(used) :]:
            laterals.append(conv(used[-1] if len(laterals) == len(used) else laterals[-1]))
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = self._step(i, laterals[i + 1], laterals[i])
        outs = self._outputs(laterals)

        source = dict(on_input=used[-1], on_lateral=laterals[-1], on_output=outs[-1])
        for i in range(len(outs), self.num_outs):
            if not self.add_extra_convs:
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
            elif i == len(laterals):
                outs.append(self.fpn_convs[i](source[self.add_extra_convs]))
            else:
                outs.append(self.fpn_convs[i](outs[-1].relu() if self.relu_before_extra_convs else outs[-1]))
        return tuple(outs)

    def _step(self, i: int, feature: Tensor, guide: Tensor) -> Tensor:
        if self.upsamplers is not None:
            return self.upsamplers[i].fuse(feature, guide)
        if 'scale_factor' in self.upsample_cfg:
            return guide + F.interpolate(feature, **self.upsample_cfg)
        return guide + F.interpolate(feature, size=guide.shape[2:], **self.upsample_cfg)

    def _outputs(self, laterals: list[Tensor]) -> list[Tensor]:
        """Of the finished top-down path, one map per level."""
        return [conv(x) for conv, x in zip(self.fpn_convs, laterals)]

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        rename_prefix(state_dict, f'{prefix}upsample_modules.', f'{prefix}upsamplers.')
        if any(key.startswith(f'{prefix}downsample_convs.') for key in state_dict) and not hasattr(
            self, 'downsample_convs'
        ):
            warnings.warn(
                f'{type(self).__name__} loads the weights of a PAFPN and leaves out its bottom-up path '
                '(downsample_convs, pafpn_convs); sapa_mm.GuidedPAFPN keeps it',
                stacklevel=2,
            )
