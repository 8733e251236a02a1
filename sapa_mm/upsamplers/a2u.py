# SPDX-License-Identifier: Apache-2.0
"""A2U: affinity-aware kernels from second-order features of the guide."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import feature_assembly
from ..ops.checks import check_kernel_size
from ..ops.sizes import is_compiling
from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, cut, pixel_shuffle, require_positive_int


@MODELS.register_module()
class A2U(BaseUpsampler):
    r"""Affinity-aware upsampling: kernels whose logits are one affinity map times coefficients of the image.

    With ``y`` the guide of ``Cy`` channels, ``x`` the feature, ``k`` the ``encoder_kernel``, ``K`` the ``kernel_size``
    and, for each image, ``u``, ``v`` two ``k x k`` filters and ``p`` coefficients made from averages of ``y``::

        u, v     = conv1x1(average_pool(y, k x k)),  conv1x1(average_pool(y, k x k))
        p        = conv1x1(average_pool(y, 1 x 1))                                    4 K^2 of them
        o1, o2   = leaky_relu(group_norm(filter(y, u))),  leaky_relu(group_norm(filter(y, v)))
        affinity = sum over channels of o1 * o2 / sqrt(Cy)                            half the size of y
        kernels  = softmax(sigmoid(pixel_shuffle(p * affinity)))
        out      = assemble(x, kernels)

    where ``filter`` correlates with stride 2 and ``assemble`` mixes the window of ``K x K`` positions of the feature
    (:func:`sapa_mm.ops.feature_assembly`). The sigmoid keeps the logits in (0, 1) and the kernels close to uniform.

    The published operator needs a guide of even sides, twice those of the feature. Here the zero padding of the filters
    reaches one position further at the right and bottom of odd sides, the kernels are cut to the guide, and position
    ``(i, j)`` of a ``(H, W)`` guide mixes the window around the cell ``(floor(i * h / H), floor(j * w / W))`` of the
    feature: the same where the published one is defined, and any size of guide besides.

    Parameter names are the published ones. ``load_state_dict`` also takes them under ``kernel_gen.``, as in the
    segmentation and detection experiments, and leaves out ``bconv_DP`` unless ``downsample`` is set.

    Args:
        in_channels (int): Channels of the feature and of the result.
        guide_channels (int, optional): Channels of the guide, divisible by 32. Defaults to ``in_channels``.
        kernel_size (int): Window side in positions of the feature, odd, 1 to 15. Defaults to 3.
        encoder_kernel (int): Side of the filters on the guide. Defaults to 6.
        share (bool): One filter for all channels of the guide, instead of one each. Defaults to True.
        downsample (bool): Have the parameters of the published downsampling branch, for
            :meth:`downsampling_kernels`. Upsampling gives them no gradient. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide, window side ``K`` and filter side ``k``.

        - Parameters: ``4 K^2 (Cy + 1) + 2 (Cy + 1) + 4 Cy``; without ``share`` ``2 Cy (Cy + 1)`` in the middle; with
          ``downsample`` the first term twice. 10,790 for 256 channels.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``2 k^2 Cy + Cy + 4 K^2 + 4 K^2 Cx``, and those of the few pooled positions.

    Source: https://arxiv.org/abs/2011.14288
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        kernel_size: int = 3,
        encoder_kernel: int = 6,
        share: bool = True,
        downsample: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        check_kernel_size(kernel_size)
        require_positive_int('encoder_kernel', encoder_kernel)
        channels = self.guide_channels
        if channels % 32:
            raise ValueError(f'guide_channels must be divisible by the 32 groups of the norms, got {channels}')
        self.kernel_size = kernel_size
        self.encoder_kernel = encoder_kernel

        def pooled(size: int, out: int) -> nn.Sequential:
            return nn.Sequential(MeanOfBins(size), nn.Conv2d(channels, out, 1))

        filters = 1 if share else channels
        self.bconv_U = pooled(encoder_kernel, filters)
        self.bconv_V = pooled(encoder_kernel, filters)
        self.bnu = nn.Sequential(nn.GroupNorm(32, channels), nn.LeakyReLU())
        self.bnv = nn.Sequential(nn.GroupNorm(32, channels), nn.LeakyReLU())
        self.bconv_UP = pooled(1, 4 * kernel_size**2)
        if downsample:
            self.bconv_DP = pooled(1, 4 * kernel_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions Xavier-normal with the gain of leaky ReLU, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, nn.init.calculate_gain('leaky_relu'))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
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
        return feature_assembly(feature, self.kernels(feature, guide), self.kernel_size)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The kernels that :meth:`forward` mixes with, ``(N, K*K, H, W)``."""
        self.check_inputs(feature, guide)
        logits = pixel_shuffle(self.bconv_UP(guide) * self.affinity(guide), 2).sigmoid()
        return cut(logits, guide.shape[2:]).softmax(1)

    def downsampling_kernels(self, guide: Tensor) -> Tensor:
        """Kernels that halve the size of a map, ``(N, 4*K*K, ceil(H / 2), ceil(W / 2))``; needs ``downsample=True``.

        Of the ``2K x 2K`` positions that become one; upsampling does not use them.
        """
        return (self.bconv_DP(guide) * self.affinity(guide)).softmax(1)

    def affinity(self, guide: Tensor) -> Tensor:
        """Similarity of the two filtered guides, ``(N, 1, ceil(H / 2), ceil(W / 2))``."""
        u = self.bnu(self._filter(guide, self.bconv_U(guide)))
        v = self.bnv(self._filter(guide, self.bconv_V(guide)))
        return (u * v).sum(1, keepdim=True) / sqrt(self.guide_channels)

    def _filter(self, guide: Tensor, filters: Tensor) -> Tensor:
        """Correlate every channel of every image with its own filter, stride 2."""
        n, channels, height, width = guide.shape
        if n == 0:  # a convolution cannot have 0 groups
            return guide.new_zeros(0, channels, -(-height // 2), -(-width // 2))
        near = (self.encoder_kernel - 1) // 2
        far = self.encoder_kernel - 2 - near
        # Sides H become ceil(H / 2): the last window of an odd side reaches one position further.
        x = F.pad(guide, (near, far + width % 2, near, far + height % 2))
        filters = filters.expand(n, channels, -1, -1).flatten(0, 1)[:, None]
        return F.conv2d(x.flatten(0, 1)[None], filters, stride=2, groups=n * channels)[0].unflatten(0, (n, channels))

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        """Rename the published layouts in place; this module's own passes unchanged."""
        rename_prefix(state_dict, f'{prefix}kernel_gen.', prefix)
        if not hasattr(self, 'bconv_DP'):
            for kind in ('weight', 'bias'):
                state_dict.pop(f'{prefix}bconv_DP.1.{kind}', None)


class MeanOfBins(nn.AdaptiveAvgPool2d):
    """``AdaptiveAvgPool2d`` that compiles for all sizes of map: inductor has torch's for fixed sizes only."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_compiling():
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = (shares(side, self.output_size, x) for side in x.shape[2:])
            return rows @ x @ columns.T


def shares(side: int, bins: int, like: Tensor) -> Tensor:
    """What every position adds to the mean of every bin, ``(bins, side)``. Bins overlap where they do not divide."""
    place, i = torch.arange(side, device=like.device), torch.arange(bins, device=like.device)[:, None]
    begin, end = i * side // bins, ((i + 1) * side + bins - 1) // bins
    return ((place >= begin) & (place < end)).to(like.dtype) / (end - begin)
