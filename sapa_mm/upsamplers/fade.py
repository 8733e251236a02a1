# SPDX-License-Identifier: Apache-2.0
"""FADE: kernels from encoder and decoder alike, and a gate that lets the encoder's detail through."""

from torch import Tensor, nn

from ..ops import feature_assembly
from ..ops.checks import check_kernel_size
from ..ops.reference import nearest
from ..registry import MODELS
from ..state_dict import rename_prefix
from .base import BaseUpsampler, require_positive_int


class GateGenerator(nn.Module):
    """One weight in (0, 1) per position of the feature."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, 1)

    def forward(self, feature: Tensor) -> Tensor:
        return self.conv(feature).sigmoid()


class KernelGenerator(nn.Module):
    """Logits of the kernels: one 3x3 convolution over both compressed maps, their results added."""

    def __init__(self, in_channels: int, guide_channels: int, embed_dims: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.compressor_en = nn.Conv2d(guide_channels, embed_dims, 1)
        self.compressor_de = nn.Conv2d(in_channels, embed_dims, 1, bias=False)
        self.content_encoder = nn.Conv2d(embed_dims, kernel_size**2, 3, padding=1, groups=groups)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        from_guide = self.content_encoder(self.compressor_en(guide))
        # The convolution runs where the feature is small; its bias thereby enters twice, as published.
        from_feature = self.content_encoder(self.compressor_de(feature))
        return from_guide + nearest(from_feature, guide.shape[2:])


@MODELS.register_module()
class FADE(BaseUpsampler):
    r"""Fusing the assets of decoder and encoder: semi-shift convolution and a decoder-dependent gate.

    With ``y`` the guide, ``x`` the feature and ``up`` the broadcast of a position to those of its cell::

        kernels = softmax(conv3x3(compressor_en(y)) + up(conv3x3(compressor_de(x))))
        gate    = up(sigmoid(conv1x1(x)))
        out     = gate * y + (1 - gate) * assemble(x, kernels)

    where the two ``conv3x3`` are one module, and ``assemble`` mixes the window of ``K x K`` positions of the feature
    (:func:`sapa_mm.ops.feature_assembly`). Without ``gating`` the result is ``assemble(x, kernels)``.

    The published operator doubles the size. Here position ``(i, j)`` of a ``(H, W)`` guide belongs to the cell
    ``(floor(i * h / H), floor(j * w / W))`` of the feature, which is the same for a ratio of 2 and defined for any.

    Parameter names are the published ones of ``FADE_L2H``. ``load_state_dict`` also takes those of ``FADE_H2L``
    (``kernel_generator.conv1_en.*``, ``conv1_de.weight``, ``conv2_kernels``, ``conv2_bias``) and of the training logs
    (``selector.conv.*``, ``up.conv1_g.*``, ``up.conv1_x.weight``; the two parameters of the 3x3 convolution, which the
    logs do not name, are found by their shapes).

    Args:
        in_channels (int): Channels of the feature and of the result.
        guide_channels (int, optional): Channels of the guide. Defaults to ``in_channels``, and must equal it if
            ``gating``.
        kernel_size (int): Window side in positions of the feature, odd, 1 to 15. Defaults to 5.
        embed_dims (int): Channels of the compressed maps. Defaults to 64.
        gating (bool): Blend with the guide. Defaults to True.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide, ``e`` of ``embed_dims`` and window side ``K``.

        - Parameters: ``e (Cx + Cy + 1) + 9 e K^2 + K^2``, and ``Cx + 1`` for the gate. 47,514 for 256 channels.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``4 Cy e + Cx e + 45 e K^2 + 4 K^2 Cx``, and ``9 Cx`` for the gate.

    Source: https://arxiv.org/abs/2207.10392
    """

    #: Whether the 3x3 convolution works on each of its channels alone.
    depthwise = False

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        kernel_size: int = 5,
        embed_dims: int = 64,
        gating: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        check_kernel_size(kernel_size)
        require_positive_int('embed_dims', embed_dims)
        if gating and self.guide_channels != in_channels:
            raise ValueError(
                'gating blends guide and feature, which need the same number of channels, '
                f'got {self.guide_channels} and {in_channels}'
            )
        self.kernel_size = kernel_size
        if gating:
            self.gate_generator = GateGenerator(in_channels)
        self.ker_generator = KernelGenerator(
            in_channels, self.guide_channels, embed_dims, kernel_size, embed_dims if self.depthwise else 1
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from the uniform distribution of Xavier, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
        out = feature_assembly(feature, self.kernels(feature, guide), self.kernel_size)
        if not hasattr(self, 'gate_generator'):
            return out
        gate = nearest(self.gate_generator(feature), guide.shape[2:])
        return gate * guide + (1 - gate) * out

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The kernels that :meth:`forward` mixes with, ``(N, K*K, H, W)``, before the gate."""
        self.check_inputs(feature, guide)
        return self.ker_generator(feature, guide).softmax(1)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        """Rename the published layouts in place; this module's own passes unchanged."""
        own = f'{prefix}ker_generator.'
        for old, new in (
            ('selector.', 'gate_generator.'),
            ('up.conv1_g.', 'ker_generator.compressor_en.'),
            ('up.conv1_x.', 'ker_generator.compressor_de.'),
            ('up.', 'ker_generator.'),
            ('kernel_generator.conv1_', 'ker_generator.compressor_'),
            ('kernel_generator.conv2_kernels', 'ker_generator.content_encoder.weight'),
            ('kernel_generator.conv2_bias', 'ker_generator.content_encoder.bias'),
            ('ker_generator.conv.', 'ker_generator.'),
        ):
            rename_prefix(state_dict, prefix + old, prefix + new)
        # What the logs leave out: parameters of their own, without a module whose name would be printed.
        for name, parameter in self.ker_generator.content_encoder.named_parameters():
            if f'{own}content_encoder.{name}' not in state_dict:
                unnamed = [
                    key for key, x in state_dict.items()
                    if key.startswith(own) and '.' not in key[len(own) :] and x.shape == parameter.shape
                ]  # fmt: skip
                if len(unnamed) == 1:
                    state_dict[f'{own}content_encoder.{name}'] = state_dict.pop(unnamed[0])


@MODELS.register_module()
class FADELite(FADE):
    r"""FADE whose maps are compressed to the ``K * K`` channels of the kernels at once.

    As :class:`FADE`, with a depthwise 3x3 convolution over ``K * K`` channels::

        kernels = softmax(conv3x3(compressor_en(y)) + up(conv3x3(compressor_de(x))))
        gate    = up(sigmoid(conv1x1(x)))
        out     = gate * y + (1 - gate) * assemble(x, kernels)

    Any size of guide, parameter names and layouts are as there; in the training log of this one,
    ``ker_generator.conv.compressor_en.*`` and ``ker_generator.conv.compressor_de.weight``.

    Args:
        in_channels (int): Channels of the feature and of the result.
        guide_channels (int, optional): Channels of the guide. Defaults to ``in_channels``, and must equal it if
            ``gating``.
        kernel_size (int): Window side in positions of the feature, odd, 1 to 15. Defaults to 5.
        gating (bool): Blend with the guide. Defaults to True.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide and window side ``K``.

        - Parameters: ``K^2 (Cx + Cy + 11)``, and ``Cx + 1`` for the gate. 13,332 for 256 channels.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``4 Cy K^2 + Cx K^2 + 45 K^2 + 4 K^2 Cx``, and ``9 Cx`` for the gate.

    Source: https://arxiv.org/abs/2207.10392
    """

    depthwise = True
    variants = {'FADE-Lite': {}}

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        kernel_size: int = 5,
        gating: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        check_kernel_size(kernel_size)
        super().__init__(in_channels, guide_channels, kernel_size, kernel_size**2, gating, init_cfg)
