# SPDX-License-Identifier: Apache-2.0
"""DLU: kernels predicted at the feature's size and moved, by predicted offsets, to the finer positions."""

from torch import Tensor, nn

from ..ops import feature_assembly
from ..ops.checks import check_kernel_size
from ..ops.maps import cell_of
from ..registry import MODELS
from .base import BaseUpsampler, fit, pixel_shuffle, require_positive_int
from .sampling import full_precision, sample


@MODELS.register_module()
class DLU(BaseUpsampler):
    r"""Dynamic lightweight upsampling: CARAFE whose kernels are sampled from a map of kernels of the feature's size.

    With ``m`` the feature compressed by a 1x1 convolution, ``s`` the ratio and ``K`` the window side::

        S      = softmax over K^2 of conv3x3(m)                                  at the size of the feature
        o      = pixel_shuffle(conv3x3(m))                                       (x, y), in positions of the feature
        kernel = S at (floor(j / s) + o_x, floor(i / s) + o_y)                   bilinear, clamped to the map
        out    = assemble(x, kernel)

    where ``assemble`` mixes the window of ``K x K`` positions of the feature (:func:`sapa_mm.ops.feature_assembly`);
    positions outside the map count as 0.

    The guide gives only its size: odd sides, up to ``s - 1`` short of the multiple of the ratio, are cut off at the
    end, any other ratio is interpolated bilinearly from there.

    Parameter names are the published ones of ``DLUPack``, whose state dicts load.

    Args:
        in_channels (int): Channels ``C`` of the feature, and of the result.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        scale_factor (int): Ratio ``s``. Defaults to 2.
        kernel_size (int): Window side ``K`` in positions of the feature, odd, 1 to 15; the authors' ``up_kernel``.
            Defaults to 5.
        encoder_kernel (int): Side ``e`` of the convolutions that predict kernels and offsets, odd. Defaults to 3.
        compressed_channels (int): Channels ``m`` that they see. Defaults to 64.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``C`` channels, ``m`` compressed ones, encoder side ``e``, window side ``K`` and ratio ``s``.

        - Parameters: ``C m + m + (e^2 m + 1) (K^2 + 2 s^2)``. 35,489 for 256 channels.
        - Multiply-accumulates per position of the feature, beside the sampling of the kernels:
          ``C m + e^2 m (K^2 + 2 s^2) + s^2 K^2 C``.

    Source: https://arxiv.org/abs/2410.22139
    """

    needs_guide = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        kernel_size: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        check_kernel_size(kernel_size)
        for name, value in dict(
            scale_factor=scale_factor, encoder_kernel=encoder_kernel, compressed_channels=compressed_channels
        ).items():
            require_positive_int(name, value)
        if encoder_kernel % 2 == 0:
            raise ValueError(f'encoder_kernel must be odd, got {encoder_kernel}')
        self.scale_factor = scale_factor
        self.kernel_size = kernel_size
        self.channel_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        side = dict(kernel_size=encoder_kernel, padding=encoder_kernel // 2)
        self.kernel_space_generator = nn.Conv2d(compressed_channels, kernel_size**2, **side)
        self.conv_offset = nn.Conv2d(compressed_channels, 2 * scale_factor**2, **side)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compressor Xavier-uniform, kernels normal with deviation 0.001, offsets and biases 0."""
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.kernel_space_generator.weight, std=0.001)
        nn.init.zeros_(self.conv_offset.weight)
        for conv in (self.channel_compressor, self.kernel_space_generator, self.conv_offset):
            nn.init.zeros_(conv.bias)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        self.check_inputs(feature, guide)
        out = feature_assembly(feature, self._kernels(feature), self.kernel_size)
        return fit(out, guide.shape[2:], self.scale_factor)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The kernels that :meth:`forward` mixes with, to look at, brought to the size of ``guide`` as its result is.

        Returns:
            ``(N, K*K, H, W)``, each window row-major.
        """
        self.check_inputs(feature, guide)
        return fit(self._kernels(feature), guide.shape[2:], self.scale_factor)

    def _kernels(self, feature: Tensor) -> Tensor:
        compressed = self.channel_compressor(feature)
        kernels = self.kernel_space_generator(compressed).softmax(1)
        x, y = full_precision(pixel_shuffle(self.conv_offset(compressed), self.scale_factor)).unbind(1)
        rows, columns = (cell_of(self.scale_factor * side, side, x.device) for side in feature.shape[2:])
        return sample(kernels, x + columns, y + rows[:, None])
