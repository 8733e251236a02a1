# SPDX-License-Identifier: Apache-2.0
"""CARAFE: upsampling, and downsampling, with kernels predicted from the content of the feature."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import feature_assembly
from ..ops.checks import check_kernel_size
from ..registry import MODELS, BaseModule
from .base import BaseUpsampler, fit, pixel_shuffle, require_positive_int


@MODELS.register_module()
class CARAFE(BaseUpsampler):
    r"""Content-aware reassembly of features: a small network predicts each output position's kernel.

    ``kernels = softmax(pixel_shuffle(content_encoder(channel_compressor(x))))`` over the ``K x K`` window, and
    ``out[p] = sum_n kernels[p, n] * x[n]`` over the window around the cell of ``p``. Taps outside the map have a kernel
    weight, which the softmax counts, and the value 0.

    The guide gives only its size: odd sides, up to ``s - 1`` short of the multiple of the ratio ``s``, are cut off at
    the end, any other ratio is interpolated bilinearly from there.

    Parameter names are those of mmcv's ``CARAFEPack``, whose checkpoints load. The kernels run on
    :func:`sapa_mm.ops.feature_assembly`, on a CPU and in bfloat16 too, where mmcv's operator needs CUDA.

    Args:
        in_channels (int): Channels ``C`` of the feature, and of the result.
        guide_channels (int, optional): Ignored, like all of the guide but its size.
        scale_factor (int): Ratio ``s``. Defaults to 2.
        kernel_size (int): Window side ``K`` in positions of the feature, odd, 1 to 15; mmcv's ``up_kernel``.
            Defaults to 5.
        groups (int): Groups of neighbouring channels with a kernel each; divides ``in_channels``; mmcv's
            ``up_group``. Defaults to 1.
        encoder_kernel (int): Kernel side ``e`` of the content encoder, odd. Defaults to 3.
        encoder_dilation (int): Its dilation. Defaults to 1.
        compressed_channels (int): Channels ``m`` that it sees. Defaults to 64.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``C`` channels, ``m`` compressed ones, encoder side ``e``, window side ``K``, ratio ``s`` and ``G`` groups.

        - Parameters: ``C m + m + (e^2 m + 1) s^2 G K^2``.
        - Multiply-accumulates per position of the feature: ``C m + s^2 e^2 G K^2 m + s^2 K^2 C``.

    Source: https://arxiv.org/abs/1905.02188
    """

    needs_guide = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        scale_factor: int = 2,
        kernel_size: int = 5,
        groups: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        check_options(
            in_channels, scale_factor, kernel_size, groups, encoder_kernel, encoder_dilation, compressed_channels
        )
        self.scale_factor = scale_factor
        self.kernel_size = kernel_size
        self.groups = groups
        self.channel_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            groups * kernel_size**2 * scale_factor**2,
            encoder_kernel,
            padding=(encoder_kernel - 1) // 2 * encoder_dilation,
            dilation=encoder_dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compressor Xavier-uniform, encoder normal with standard deviation 0.001, biases 0: kernels start uniform."""
        reset_encoder(self.channel_compressor, self.content_encoder)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, in_channels, h, w)``, to the size of ``guide``, ``(N, *, H, W)``, any size.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or the channels of the feature do not fit.
        """
        self.check_inputs(feature, guide)
        out = feature_assembly(feature, self._kernels(feature), self.kernel_size, self.groups)
        return fit(out, guide.shape[2:], self.scale_factor)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The kernels that :meth:`forward` mixes with, to look at, brought to the size of ``guide`` as its result is.

        Returns:
            ``(N, groups * K*K, H, W)``, each window row-major.
        """
        self.check_inputs(feature, guide)
        return fit(self._kernels(feature), guide.shape[2:], self.scale_factor)

    def _kernels(self, feature: Tensor) -> Tensor:
        logits = pixel_shuffle(self.content_encoder(self.channel_compressor(feature)), self.scale_factor)
        return logits.unflatten(1, (self.groups, -1)).softmax(2).flatten(1, 2)


@MODELS.register_module()
class CARAFEDownsample(BaseModule):
    r"""Content-aware downsampling of CARAFE++: kernels are predicted once per block of ``s x s`` positions.

    ``kernels = softmax(content_encoder(channel_compressor(x)))``, with a stride of ``s`` in the content encoder, and
    ``out[i, j] = sum_n kernels[i, j, n] * x[n]`` over the ``K x K`` window around ``(s i, s j)``. Taps outside the map
    have a kernel weight, which the softmax counts, and the value 0. A side that ``s`` does not divide is rounded up, as
    a strided convolution does.

    It has the parameters of :class:`CARAFE` for a ratio of 1, under the same names. Its authors released no code.

    Args:
        in_channels (int): Channels ``C`` of the feature, and of the result.
        scale_factor (int): Ratio ``s``. Defaults to 2.
        kernel_size (int): Window side ``K`` in positions of the feature, odd, 1 to 15. Defaults to 5.
        groups (int): Groups of neighbouring channels with a kernel each; divides ``in_channels``. Defaults to 1.
        encoder_kernel (int): Kernel side ``e`` of the content encoder, odd. Defaults to 3.
        encoder_dilation (int): Its dilation. Defaults to 1.
        compressed_channels (int): Channels ``m`` that it sees. Defaults to 64.
        init_cfg (dict or list[dict], optional): Initialisation on top of that of CARAFE.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``C`` channels, ``m`` compressed ones, encoder side ``e``, window side ``K``, ratio ``s`` and ``G`` groups.

        - Parameters: ``C m + m + (e^2 m + 1) G K^2``.
        - Multiply-accumulates per position of the result: ``s^2 C m + e^2 G K^2 m + K^2 C``.

    Source: https://arxiv.org/abs/2012.04733
    """

    def __init__(
        self,
        in_channels: int,
        scale_factor: int = 2,
        kernel_size: int = 5,
        groups: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        require_positive_int('in_channels', in_channels)
        check_options(
            in_channels, scale_factor, kernel_size, groups, encoder_kernel, encoder_dilation, compressed_channels
        )
        self.in_channels = in_channels
        self.scale_factor = scale_factor
        self.kernel_size = kernel_size
        self.groups = groups
        self.channel_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            groups * kernel_size**2,
            encoder_kernel,
            stride=scale_factor,
            padding=(encoder_kernel - 1) // 2 * encoder_dilation,
            dilation=encoder_dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The compressor Xavier-uniform, the encoder normal with deviation 0.001, biases 0: kernels start uniform."""
        reset_encoder(self.channel_compressor, self.content_encoder)

    def init_weights(self) -> None:
        """Initialise again, own rules first, then ``init_cfg``."""
        self.reset_parameters()
        super().init_weights()

    def forward(self, feature: Tensor) -> Tensor:
        """Downsample.

        Args:
            feature: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, in_channels, ceil(H / s), ceil(W / s))``.

        Raises:
            ValueError: If the feature has another rank or number of channels.
        """
        if feature.dim() != 4 or feature.shape[1] != self.in_channels:
            raise ValueError(f'feature must be (N, {self.in_channels}, H, W), got {tuple(feature.shape)}')
        logits = self.content_encoder(self.channel_compressor(feature))
        kernels = logits.unflatten(1, (self.groups, -1)).softmax(2).flatten(1, 2)
        # With sides that the ratio divides, the cell of (i, j) is (s i, s j); outside is 0 anyway.
        bottom, right = (-side % self.scale_factor for side in feature.shape[2:])
        return feature_assembly(F.pad(feature, (0, right, 0, bottom)), kernels, self.kernel_size, self.groups)


def check_options(
    in_channels: int,
    scale_factor: int,
    kernel_size: int,
    groups: int,
    encoder_kernel: int,
    encoder_dilation: int,
    compressed_channels: int,
) -> None:
    """Raise :class:`ValueError` or :class:`TypeError` unless all are in range."""
    check_kernel_size(kernel_size)
    for name, value in (
        ('scale_factor', scale_factor),
        ('groups', groups),
        ('encoder_kernel', encoder_kernel),
        ('encoder_dilation', encoder_dilation),
        ('compressed_channels', compressed_channels),
    ):
        require_positive_int(name, value)
    if encoder_kernel % 2 == 0:
        raise ValueError(f'encoder_kernel must be odd, got {encoder_kernel}')
    if in_channels % groups:
        raise ValueError(f'groups must divide in_channels, got {groups} groups and {in_channels} channels')


def reset_encoder(channel_compressor: nn.Conv2d, content_encoder: nn.Conv2d) -> None:
    nn.init.xavier_uniform_(channel_compressor.weight)
    nn.init.normal_(content_encoder.weight, std=0.001)
    for conv in (channel_compressor, content_encoder):
        nn.init.zeros_(conv.bias)
