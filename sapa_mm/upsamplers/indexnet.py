# SPDX-License-Identifier: Apache-2.0
"""IndexNet: soft indices predicted from the guide scale the feature."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.maps import nearest
from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, cut, pixel_shuffle, require_choice

INDEXES = ('holistic', 'o2o', 'm2o')


@MODELS.register_module()
class IndexNet(BaseUpsampler):
    r"""Learned indices: unpooling whose positions are soft and predicted from the guide.

    With ``y`` the guide, ``x`` the feature and ``up`` the broadcast of a position to those of its cell::

        index = sigmoid(pixel_shuffle(net(y)))
        out   = index * up(x)

    where ``net`` halves the size with strided convolutions without bias and gives four values per channel, one for
    each position of a 2x2 block, in the order (0, 0), (0, 1), (1, 0), (1, 1).

    ============  ==========================================================================
    `index`       net
    ============  ==========================================================================
    ``holistic``  one net; its index map has a single channel, for all channels of the feature
    ``o2o``       four depthwise nets, one-to-one
    ``m2o``       four full nets, many-to-one; what the segmentation experiments trained
    ============  ==========================================================================

    The published operator needs a guide of even sides, twice those of the feature. Here odd sides are padded with
    zeros at the right and bottom for the net, the index map is cut back, and position ``(i, j)`` of a ``(H, W)`` guide
    takes the cell ``(floor(i * h / H), floor(j * w / W))`` of the feature: the same where the published one is defined,
    and any size of guide besides.

    Parameter names are the published ones; ``load_state_dict`` also takes them under ``index_net.``, as in the
    published segmentation checkpoints, and ``indexnet.weight``, the published name in the linear holistic net.

    Args:
        in_channels (int): Channels of the feature and of the result.
        guide_channels (int, optional): Channels of the guide. Defaults to ``in_channels``, and must equal it for
            ``index='o2o'``.
        index (str): ``'holistic'``, ``'o2o'`` or ``'m2o'``. Defaults to ``'m2o'``.
        use_nonlinear (bool): Convolution, BatchNorm, ReLU6 and a second, 1x1 convolution instead of one convolution.
            Defaults to False.
        use_context (bool): Windows of 4x4 instead of 2x2. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``C`` channels of the guide, ``Cx`` of the feature, and a window of ``k`` positions, 4, or 16 with
        ``use_context``.

        - Parameters: ``m2o``: ``4 k C Cx``, nonlinear ``4 k C^2 + 4 C Cx + 8 C``. ``o2o``: ``4 k C``, nonlinear
          ``4 (k + 3) C``. ``holistic``: ``4 k C``, nonlinear ``2 k C^2 + 12 C``. Default for 256 channels: 1,048,576.
        - Multiply-accumulates per position of the feature, at twice its size: one for each weight of the convolutions
          (the terms above without the ``8 C`` of BatchNorm, ``4 C`` in ``holistic``), and ``4 Cx`` for the product.

    Source: https://arxiv.org/abs/1908.00672
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        index: str = 'm2o',
        use_nonlinear: bool = False,
        use_context: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        require_choice('index', index, INDEXES)
        channels = self.guide_channels
        if index == 'o2o' and channels != in_channels:
            raise ValueError(
                f'index={index!r} needs guide and feature of the same number of channels, '
                f'got {channels} and {in_channels}'
            )

        def net(hidden: int, out: int, groups: int = 1) -> nn.Sequential:
            window = dict(kernel_size=4, padding=1) if use_context else dict(kernel_size=2)
            if not use_nonlinear:
                hidden = out
            layers = [nn.Conv2d(channels, hidden, stride=2, bias=False, groups=groups, **window)]
            if use_nonlinear:
                layers += [nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
                layers += [nn.Conv2d(hidden, out, 1, bias=False, groups=groups)]
            return nn.Sequential(*layers)

        self.index = index
        if index == 'holistic':
            self.indexnet = net(2 * channels, 4)
        else:
            for n in range(1, 5):
                self.add_module(f'indexnet{n}', net(channels, in_channels, channels if index == 'o2o' else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The default initialisation of torch, as published."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                module.reset_parameters()

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature`` to the size of ``guide``.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        self.check_inputs(feature, guide)
        return self.indices(guide) * nearest(feature, guide.shape[2:])

    def indices(self, guide: Tensor) -> Tensor:
        """The index map that :meth:`forward` multiplies with, ``(N, in_channels or 1, H, W)`` in (0, 1)."""
        height, width = guide.shape[2:]
        guide = F.pad(guide, (0, width % 2, 0, height % 2))
        if self.index == 'holistic':
            index = self.indexnet(guide)
        else:
            nets = (self.indexnet1, self.indexnet2, self.indexnet3, self.indexnet4)
            index = torch.stack([net(guide) for net in nets], 2).flatten(1, 2)
        return cut(pixel_shuffle(index.sigmoid(), 2), (height, width))

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        """Rename the published layout in place; this module's own passes unchanged."""
        rename_prefix(state_dict, f'{prefix}index_net.', prefix)
        # The linear holistic net is a single convolution there.
        rename_prefix(state_dict, f'{prefix}indexnet.weight', f'{prefix}indexnet.0.weight')
