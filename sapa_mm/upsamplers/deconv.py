# SPDX-License-Identifier: Apache-2.0
"""Deconvolution: a transposed convolution as upsampler."""

from torch import Tensor, nn

from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, fit, require_positive_int


@MODELS.register_module()
class Deconv(BaseUpsampler):
    r"""Transposed convolution: every feature adds its kernel, the same everywhere, to the finer map.

    ``out[s i + a - p] += W[a]^T x[i]`` per axis, for ``a = 0 ... K - 1``, with the stride ``s`` and the padding ``p``
    that give exactly ``s`` times the size. The guide gives only its size: odd sides, up to ``s - 1`` short of the
    multiple, are cut off at the end, any other ratio is interpolated bilinearly from there.

    The keys ``weight`` and ``bias`` of a plain ``nn.ConvTranspose2d`` load.

    Args:
        in_channels (int): Channels ``C`` of the feature.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        out_channels (int, optional): Channels ``D`` of the result. Defaults to ``in_channels``.
        scale_factor (int): Ratio ``s``, at least 2. Defaults to 2.
        kernel_size (int): Kernel side ``K``, at least ``scale_factor``: a smaller one leaves gaps. Defaults to 3.
        init_cfg (dict or list[dict], optional): Initialisation on top of torch's.

    Raises:
        ValueError: If an option or a channel count is out of range.

    Cost:
        With ``C`` input and ``D`` output channels and kernel side ``K``.

        - Parameters: ``K^2 C D + D``.
        - Multiply-accumulates per position of the feature: ``K^2 C D``.

    Source: https://arxiv.org/abs/1411.4038, with kernel 3 as in the published comparisons.
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
        if not 2 <= scale_factor <= kernel_size:
            raise ValueError(
                'scale_factor must be at least 2 and at most kernel_size, '
                f'got scale_factor={scale_factor} and kernel_size={kernel_size}'
            )
        self.scale_factor = scale_factor
        # The full result has K - s more rows than s times the size; the odd one, if any, is taken off at the end.
        padding = (kernel_size - scale_factor + 1) // 2
        self.conv = nn.ConvTranspose2d(
            in_channels,
            self.out_channels,
            kernel_size,
            stride=scale_factor,
            padding=padding,
            output_padding=2 * padding - (kernel_size - scale_factor),
        )

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
        return fit(self.conv(feature), guide.shape[2:], self.scale_factor)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        for kind in ('weight', 'bias'):
            rename_prefix(state_dict, f'{prefix}{kind}', f'{prefix}conv.{kind}')
