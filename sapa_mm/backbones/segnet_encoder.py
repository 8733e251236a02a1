# SPDX-License-Identifier: Apache-2.0
"""The encoder of SegNet: VGG with batch normalisation, which shows its maps before they are pooled."""

from mmcv.cnn.vgg import VGG, make_vgg_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class SegNetEncoder(BaseModule):
    """VGG with batch normalisation whose outputs are what its five poolings take, and what the last one gives.

    Pooling rounds sizes up, so that a row or column at an odd border is not lost and position ``p`` always pools into
    ``p // 2``. Parameters have the names of torchvision, whose ``vgg16_bn`` loads.

    Args:
        depth (int): 11, 13, 16 or 19. Defaults to 16.
        base_channels (int): Channels of the first stage; the others have 2, 4, 8 and 8 times as many. Defaults to 64.
        init_cfg (dict or list[dict], optional): Initialisation of mmengine. Defaults to Kaiming for convolutions.

    Raises:
        ValueError: If there is no VGG of this depth.

    Source: https://arxiv.org/abs/1511.00561
    """

    def __init__(self, depth: int = 16, base_channels: int = 64, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(dict(type='Kaiming', layer='Conv2d') if init_cfg is None else init_cfg)
        if depth not in VGG.arch_settings:
            raise ValueError(f'depth must be one of {tuple(VGG.arch_settings)}, got {depth!r}')
        layers, channels = [], 3
        for i, count in enumerate(VGG.arch_settings[depth]):
            out_channels = base_channels * min(2**i, 8)
            layers += make_vgg_layer(channels, out_channels, count, with_bn=True, ceil_mode=True)
            channels = out_channels
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            x: Images, ``(N, 3, H, W)``, any size.

        Returns:
            Six maps of 1, 2, 4, 8, 8 and 8 times ``base_channels``: five before pooling with strides 1 to 16, and the
            pooled one of stride 32. Sizes are rounded up.
        """
        outs = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                outs.append(x)
            x = layer(x)
        return *outs, x
