# SPDX-License-Identifier: Apache-2.0
"""Pixel shuffle: a convolution that predicts all sub-pixels at once."""

from torch import Tensor, nn

from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, fit, pixel_shuffle, require_positive_int


@MODELS.register_module()
class PixelShuffle(BaseUpsampler):
    r"""Sub-pixel convolution: each feature gives an ``s x s`` block of the finer map.

    ``out[c, s i + a, s j + b] = (W * x + bias)[c s^2 + a s + b, i, j]`` with a ``K x K`` convolution ``W``, zeros
    outside. The guide gives only its size: odd sides, up to ``s - 1`` short of the multiple, are cut off at the end,
    any other ratio is interpolated bilinearly from there.

    The keys ``0.weight`` and ``0.bias`` of ``nn.Sequential(nn.Conv2d, nn.PixelShuffle)`` load.

    Args:
        in_channels (int): Channels ``C`` of the feature.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        out_channels (int, optional): Channels ``D`` of the result. Defaults to ``in_channels``.
        scale_factor (int): Ratio ``s``. Defaults to 2.
        kernel_size (int): Kernel side ``K``, odd. Defaults to 3.
        init_cfg (dict or list[dict], optional): Initialisation on top of torch's.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``C`` input and ``D`` output channels, kernel side ``K`` and ratio ``s``.

        - Parameters: ``K^2 s^2 C D + s^2 D``.
        - Multiply-accumulates per position of the feature: ``K^2 s^2 C D``.

    Source: https://arxiv.org/abs/1609.05158
    """

    needs_guide = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        out_channels: int | None = None,
        scale_factor: int = 2,
        kernel_size: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, out_channels, init_cfg)
        require_positive_int('scale_factor', scale_factor)
        require_positive_int('kernel_size', kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        self.scale_factor = scale_factor
        self.conv = nn.Conv2d(in_channels, self.out_channels * scale_factor**2, kernel_size, padding=kernel_size // 2)

    def reset_parameters(self) -> None:
        """As torch initialises its convolutions."""
        self.conv.reset_parameters()

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Returns:
            ``(N, out_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        self.check_inputs(feature, guide)
        out = pixel_shuffle(self.conv(feature), self.scale_factor)
        return fit(out, guide.shape[2:], self.scale_factor)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        rename_prefix(state_dict, f'{prefix}0.', f'{prefix}conv.')
