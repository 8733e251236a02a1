# SPDX-License-Identifier: Apache-2.0
"""Upsampling the features of any backbone with the image itself as guide.

The modules take ``(feature, image)``, the image normalised RGB of any size. FeatUp's are stacks of four steps of two;
NAF takes any size to any other and has no parameter that depends on the backbone.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import feature_assembly, point_affiliation, reference
from ..ops.checks import MAX_KERNEL_SIZE
from ..registry import MODELS, BaseModule
from .base import require_positive_int
from .carafe import CARAFE
from .sapa import SAPA

STEPS = 4


class _Stack(BaseModule):
    """Four steps of two, each guided by the image, pooled to the step's size."""

    def __init__(self, in_channels: int, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        require_positive_int('in_channels', in_channels)
        self.in_channels = in_channels
        for i in range(STEPS):
            self.add_module(f'up{i + 1}', self.make_step(in_channels))

    def make_step(self, channels: int) -> nn.Module:
        raise NotImplementedError

    def forward(self, feature: Tensor, image: Tensor) -> Tensor:
        """Upsample by 16.

        Args:
            feature: ``(N, in_channels, h, w)``.
            image: ``(N, 3, H, W)``, any size.

        Returns:
            ``(N, in_channels, 16 h, 16 w)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        check_pair(feature, image, self.in_channels)
        for i in range(STEPS):
            guide = F.adaptive_avg_pool2d(image, [2 * side for side in feature.shape[2:]])
            feature = getattr(self, f'up{i + 1}')(feature, guide)
        return feature


@MODELS.register_module()
class SAPAStack(_Stack):
    """Four independent SAPA-B in a row, guided by the image: the SAPA upsampler of FeatUp, whose checkpoints load.

    Args:
        in_channels (int): Channels ``C`` of the feature and of the result.
        init_cfg (dict or list[dict], optional): Initialisation on top of that of :class:`SAPA`.

    Raises:
        ValueError: If ``in_channels`` is no positive integer.

    Cost:
        With ``C`` channels, ``4 (66 C + 326)`` parameters: 68,888 for 256 channels.

    Source: https://arxiv.org/abs/2403.10516
    """

    def make_step(self, channels: int) -> nn.Module:
        return SAPA(channels, 3, similarity='bilinear', embed_dims=64)


@MODELS.register_module()
class CARAFEStack(_Stack):
    """Four independent CARAFE of window side 3 in a row; the image gives only sizes. FeatUp's checkpoints load.

    Args:
        in_channels (int): Channels ``C`` of the feature and of the result.
        init_cfg (dict or list[dict], optional): Initialisation on top of that of :class:`CARAFE`.

    Raises:
        ValueError: If ``in_channels`` is no positive integer.

    Cost:
        With ``C`` channels, ``4 (64 C + 20836)`` parameters: 148,880 for 256 channels.

    Source: https://arxiv.org/abs/2403.10516
    """

    def make_step(self, channels: int) -> nn.Module:
        return CARAFE(channels, kernel_size=3)


@MODELS.register_module()
class JBUStack(_Stack):
    """FeatUp's joint bilateral upsampling: four :class:`JBUStep`, then a tenth of a 1x1 convolution is added.

    Args:
        in_channels (int): Channels ``C`` of the feature and of the result.
        init_cfg (dict or list[dict], optional): Initialisation on top of torch's own.

    Raises:
        ValueError: If ``in_channels`` is no positive integer.

    Cost:
        With ``C`` channels, ``24932 + C (C + 1)`` parameters: 90,724 for 256 channels.

    Source: https://arxiv.org/abs/2403.10516
    """

    def __init__(self, in_channels: int, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(in_channels, init_cfg)
        self.fixup_proj = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(in_channels, in_channels, 1))

    def make_step(self, channels: int) -> nn.Module:
        return JBUStep()

    def forward(self, feature: Tensor, image: Tensor) -> Tensor:
        """As the other stacks."""
        out = super().forward(feature, image)
        return out + 0.1 * self.fixup_proj(out)


class JBUStep(nn.Module):
    r"""Joint bilateral upsampling with a learned range kernel.

    With ``g`` the guide, ``p = conv1x1(gelu(conv1x1(g)))``, windows of ``K x K`` positions ``t`` of the finer map,
    reflected at borders, and ``d_t`` from -1 to 1 along each axis::

        k   = softmax_t(exp(T) <p_t, p>) * exp(-|d_t|^2 / (2 sigma^2)),   divided by its sum
        k   = k + 0.1 conv1x1(gelu(conv1x1([k, g])))
        out = sum_t k_t * bicubic(x)_t

    ``T`` and ``sigma`` are parameters. Dropout between the convolutions in training.

    Args:
        guide_channels (int): Channels of the guide. Defaults to 3.
        embed_dims (int): Channels of ``p``. Defaults to 32.
        radius (int): ``(K - 1) / 2``. Defaults to 3.

    Raises:
        ValueError: If an option is no positive integer.
    """

    def __init__(self, guide_channels: int = 3, embed_dims: int = 32, radius: int = 3) -> None:
        super().__init__()
        for name, value in dict(guide_channels=guide_channels, embed_dims=embed_dims, radius=radius).items():
            require_positive_int(name, value)
        self.kernel_size = 2 * radius + 1
        points = self.kernel_size**2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = nn.Sequential(
            nn.Conv2d(guide_channels, embed_dims, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(embed_dims, embed_dims, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(guide_channels + points, points, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(points, points, 1)
        )

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature``, ``(N, C, h, w)``, to the size of ``guide``, ``(N, guide_channels, H, W)``.

        Returns:
            ``(N, C, H, W)``.
        """
        enlarged = F.interpolate(feature, guide.shape[2:], mode='bicubic', align_corners=False)
        return feature_assembly(enlarged, self.kernels(guide).to(enlarged.dtype), self.kernel_size, border='reflect')

    def kernels(self, guide: Tensor) -> Tensor:
        """The kernels that :meth:`forward` mixes with, ``(N, K*K, H, W)``."""
        embedded = self.range_proj(guide)
        scores = reference.affiliation_scores(embedded, embedded, self.kernel_size, border='reflect')
        kernels = (self.range_temp.exp().clamp(1e-4, 1e4) * scores).softmax(1)
        axis = torch.linspace(-1, 1, self.kernel_size, device=guide.device, dtype=self.sigma_spatial.dtype)
        distance = (axis[:, None] ** 2 + axis**2).flatten()
        kernels = kernels * (-distance / (2 * self.sigma_spatial**2)).exp()[:, None, None]
        kernels = kernels / kernels.sum(1, keepdim=True).clamp(min=1e-7)
        return kernels + 0.1 * self.fixup_proj(torch.cat([kernels, guide.to(kernels.dtype)], 1))


@MODELS.register_module()
class NAF(BaseModule):
    r"""Neighbourhood attention filtering: attention of image features to a window of low-resolution cells.

    Two stacks of convolutions, 1x1 and 3x3, encode the image; their maps are pooled to the size asked for and turned by
    a rotary position encoding::

        q   = RoPE(pool([encoder(image), sem_encoder(image)]))
        k   = pool of q to the size of the feature,   v = the feature
        out = sum over the window of softmax(<q, k> / sqrt(D)) * v                    per head of D channels

    Each window holds ``K x K`` cells around that of the position, moved inwards at borders. A head mixes contiguous
    channels of the feature. Nothing depends on the backbone: one checkpoint serves all.

    An image more than four times the size asked for is first reduced to at most four times its shorter side, in both
    directions, as published. In training the coordinates of the position encoding are multiplied by a factor between
    1/2 and 2, drawn at every call; the authors' code draws it only when the size changes.

    Any sizes work; the published operator asks for integer ratios and features of at least ``K`` cells. A smaller map
    is attended to whole.

    Args:
        dim (int): Channels of queries and keys, divisible by 16 and by 4 ``num_heads``. Defaults to 256.
        num_heads (int): Heads; divides the channels of the feature. Defaults to 4.
        kernel_size (int): Window side ``K`` in cells of the feature, odd. Defaults to 9.
        img_layers (int): Pairs of convolutions in each encoder. Defaults to 2.
        rope_base (float): Largest period of the position encoding. Defaults to 100.
        rope_rescale (float): Range of the factor in training, at least 1. Defaults to 2.
        init_cfg (dict or list[dict], optional): Initialisation on top of torch's own.

    Raises:
        ValueError: If an option is out of range.

    Cost:
        662,528 parameters with default options, whatever the feature.

    Source: https://github.com/valeoai/NAF
    """

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 4,
        kernel_size: int = 9,
        img_layers: int = 2,
        rope_base: float = 100,
        rope_rescale: float = 2,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, value in dict(dim=dim, num_heads=num_heads, kernel_size=kernel_size, img_layers=img_layers).items():
            require_positive_int(name, value)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        if dim % 16 or dim % (4 * num_heads):
            raise ValueError(f'dim must be divisible by 16 and by 4 * num_heads, got {dim} and {num_heads} heads')
        if not rope_base > 0 or not rope_rescale >= 1:
            raise ValueError(
                f'rope_base must be positive and rope_rescale at least 1, got {rope_base} and {rope_rescale}'
            )
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.image_encoder = ImageEncoder(dim, num_heads, img_layers, rope_base, rope_rescale)

    def forward(self, feature: Tensor, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample.

        Args:
            feature: ``(N, C, h, w)``, ``C`` divisible by ``num_heads``.
            image: ``(N, 3, H, W)``, normalised RGB.
            size: Height and width to give. Defaults to those of the image.

        Returns:
            ``(N, C, *size)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        check_pair(feature, image)
        if feature.shape[1] % self.num_heads:
            raise ValueError(f'the feature needs channels divisible by {self.num_heads} heads, got {feature.shape[1]}')
        size = image.shape[2:] if size is None else size
        query = self.image_encoder(image, size)
        key = F.adaptive_avg_pool2d(query, feature.shape[2:])
        scale = (query.shape[1] // self.num_heads) ** -0.5
        return attend(query, key, feature, self.num_heads, self.kernel_size, scale)


@MODELS.register_module()
class ColourAffiliation(BaseModule):
    r"""SAPA-I without training: positions are alike if their colours are, and if they are near.

    The key is the query's own low-resolution version, so that both are in one space::

        q   = [normalised colour, w * coordinates],   k = pool of q to the size of the feature,   v = the feature
        out = sum over the window of softmax(-tau |q - k|^2) * v

    Windows of ``K x K`` cells are moved inwards at borders. No parameters, any feature, any sizes: a baseline for what
    learned image-guided upsamplers add. Not published.

    Args:
        kernel_size (int): Window side ``K`` in cells of the feature, odd. Defaults to 5.
        temperature (float): ``tau``, positive. Defaults to 10.
        coordinate_weight (float): ``w``, of coordinates in cells of the feature, not negative. Defaults to 0.3.
        init_cfg (dict or list[dict], optional): As any mmengine module.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        kernel_size: int = 5,
        temperature: float = 10,
        coordinate_weight: float = 0.3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        require_positive_int('kernel_size', kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        if not temperature > 0 or not coordinate_weight >= 0:
            raise ValueError(
                'temperature must be positive and coordinate_weight not negative, '
                f'got {temperature} and {coordinate_weight}'
            )
        self.kernel_size = kernel_size
        self.temperature = temperature
        self.coordinate_weight = coordinate_weight

    def forward(self, feature: Tensor, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample.

        Args:
            feature: ``(N, C, h, w)``.
            image: ``(N, 3, H, W)``, normalised RGB.
            size: Height and width to give. Defaults to those of the image.

        Returns:
            ``(N, C, *size)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        check_pair(feature, image)
        colour = F.adaptive_avg_pool2d(image, tuple(image.shape[2:] if size is None else size))
        cells = feature.shape[2:]
        rows, columns = (
            (torch.arange(side, device=image.device, dtype=image.dtype) + 0.5) * (cell / side)
            for side, cell in zip(colour.shape[2:], cells)
        )
        place = torch.stack(torch.meshgrid(rows, columns, indexing='ij')).expand(len(image), -1, -1, -1)
        query = torch.cat([colour, self.coordinate_weight * place], 1)
        key = F.adaptive_avg_pool2d(query, cells)
        # -|q - k|^2 = 2 <q, k> - |k|^2, less what all keys of a query share
        key = torch.cat([2 * key, -key.square().sum(1, keepdim=True)], 1)
        query = torch.cat([query, torch.ones_like(query[:, :1])], 1)
        return attend(query, key, feature, 1, self.kernel_size, self.temperature)


class ImageEncoder(nn.Module):
    """The image, ``(N, 3, H, W)``, as queries of a given size, ``(N, dim, *size)``."""

    def __init__(self, dim: int, num_heads: int, layers: int, rope_base: float, rope_rescale: float) -> None:
        super().__init__()
        self.encoder, self.sem_encoder = (
            nn.Sequential(reflecting_conv(3, dim // 2, side), *(EncoderBlock(dim // 2, side) for _ in range(layers)))
            for side in (1, 3)
        )
        self.rope = RotaryEncoding(dim // num_heads, rope_base, rope_rescale)
        self.num_heads = num_heads

    def forward(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        bound = 4 * min(size)
        if any(have > 4 * want for have, want in zip(image.shape[2:], size)):
            reduced = [min(side, bound) for side in image.shape[2:]]
            image = F.interpolate(image, reduced, mode='bilinear', align_corners=False)
        encoded = torch.cat([self.encoder(image), self.sem_encoder(image)], 1)
        encoded = F.adaptive_avg_pool2d(encoded, tuple(size))
        return self.rope(encoded.unflatten(1, (self.num_heads, -1))).flatten(1, 2)


class EncoderBlock(nn.Module):
    """Twice: GroupNorm of 8 groups, SiLU, convolution; without a shortcut."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(8, channels) for _ in range(2))
        self.conv1, self.conv2 = (reflecting_conv(channels, channels, kernel_size) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class RotaryEncoding(nn.Module):
    """Turn pairs of channels of ``(N, heads, D, H, W)`` by angles that grow with the row and with the column."""

    def __init__(self, channels: int, base: float, rescale: float) -> None:
        super().__init__()
        self.rescale = rescale
        steps = torch.arange(channels // 4, dtype=torch.float64) / (channels // 4)
        self.register_buffer('periods', (base**steps).float())

    def forward(self, x: Tensor) -> Tensor:
        periods = self.periods.to(x.dtype)
        factor = 1.0
        if self.training and self.rescale > 1:
            limit = math.log(self.rescale)
            factor = torch.empty((), device=x.device, dtype=x.dtype).uniform_(-limit, limit).exp()
        height, width = x.shape[3:]
        rows, columns = (
            2 * math.pi * factor * (2 * (torch.arange(side, device=x.device, dtype=x.dtype) + 0.5) / side - 1)
            / periods[:, None]
            for side in (height, width)
        )  # fmt: skip
        angles = torch.cat(
            [rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)]
        )  # (D / 2, H, W)
        first, second = x.chunk(2, dim=2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], 2)


def reflecting_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, padding_mode='reflect')


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, kernel_size: int, scale: float) -> Tensor:
    """Neighbourhood attention: windows that move inwards at borders. The compiled operator has windows up to 15."""
    operator = point_affiliation if kernel_size <= MAX_KERNEL_SIZE else reference.point_affiliation
    return operator(query * scale, key, value, kernel_size, border='shift', heads=num_heads)


def check_pair(feature: Tensor, image: Tensor, channels: int | None = None) -> None:
    """Raise :class:`ValueError` unless both are NCHW maps of one batch size, of ``channels`` and 3."""
    for name, x, wanted in (('feature', feature, channels), ('image', image, 3)):
        if x.dim() != 4 or wanted not in (None, x.shape[1]):
            raise ValueError(f'{name} must be (N, {wanted or "C"}, H, W), got {tuple(x.shape)}')
    if feature.shape[0] != image.shape[0]:
        raise ValueError(f'feature and image must have one batch size, got {feature.shape[0]} and {image.shape[0]}')
