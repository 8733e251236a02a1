# SPDX-License-Identifier: Apache-2.0
"""SAPA: upsampling by the similarity of encoder and decoder points."""

import torch
from torch import Tensor, nn

from ..ops import affiliation_kernels, channel_norm, norm_projection, point_affiliation
from ..ops.checks import check_kernel_size, check_normalization
from ..ops.reference import accumulation_dtype, nearest
from ..registry import MODELS
from .base import BaseUpsampler, require_choice, require_positive_int

SIMILARITIES = ('inner', 'bilinear', 'gated', 'plain')
GATES = ('separate', 'shared')
NORMS = ('layer', 'group', None)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW map."""

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.weight, self.bias, self.eps)

    def project(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The norm, then the 1x1 convolution of ``weight`` ``(D, C, 1, 1)`` and ``bias``, in one pass over the map."""
        weight = weight.flatten(1)
        # Their products are kept in the dtype of the sums.
        weight, norm_weight, norm_bias = (t.to(accumulation_dtype(t.dtype)) for t in (weight, self.weight, self.bias))
        return norm_projection(x, weight * norm_weight, (weight * norm_bias).sum(1) + bias, self.eps)


@MODELS.register_module()
class SAPA(BaseUpsampler):
    r"""Similarity-aware point affiliation: smooth inside regions, sharp at boundaries.

    With ``y`` the guide, ``x`` the feature, ``y'`` and ``x'`` both normalised over the channels, each position of the
    guide compares its query with the keys of a window of the feature, and the normalised scores mix the window:

    ============  =========  ===========================================  ==============
    `similarity`  published  query                                        key
    ============  =========  ===========================================  ==============
    ``inner``     SAPA-I     ``y'``                                       ``x'``
    ``bilinear``  SAPA-B     ``q(y')``                                    ``k(x')``
    ``gated``     SAPA-G     ``g * qy(y') + (1 - g) * qx(x)``             ``k(x')``
    ``plain``     (ablation) ``qy(y') + qx(x)``                           ``k(x')``
    ============  =========  ===========================================  ==============

    where ``g = sigmoid(gate(x'))`` has one channel, and what comes from ``x`` is broadcast to the positions of its
    cell. With ``gate='shared'`` both branches use one projection, ``q(g * y' + (1 - g) * x')``: this is what the
    published cost columns of SAPA-G count, the separate one is what the released experiments trained. Its
    normalisation of ``x`` was not published; the projection sees one kind of input only if ``x`` is normalised like
    ``y``, so it is.

    Parameter names are the published ones. ``load_state_dict`` also takes the published layouts: linear layers' 2-D
    weights, the training logs' ``q.proj.*``, ``q.proj_y.*``, ``q.proj_x.*``, ``q.gate.*``, ``k.proj.*``, and the
    single ``q.weight`` over the concatenated encoder and decoder channels for ``plain``.

    Args:
        in_channels (int): Channels of the feature.
        guide_channels (int, optional): Channels of the guide. Defaults to ``in_channels``; ``inner`` and the shared
            gate need both equal.
        out_channels (int, optional): Channels of the result. Defaults to ``in_channels``; another number embeds the
            value.
        similarity (str): ``'inner'``, ``'bilinear'``, ``'gated'`` or ``'plain'``. Defaults to ``'gated'``.
        gate (str): ``'separate'`` or ``'shared'`` projections of ``'gated'``. Defaults to ``'separate'``.
        kernel_size (int): Window side in positions of the feature, odd, 1 to 15. Defaults to 5.
        embed_dims (int): Width of query and key; not used by ``'inner'``. Defaults to 32.
        normalization (str): ``'softmax'``, ``'relu'``, ``'sigmoid'`` or ``'softplus'``. Defaults to ``'softmax'``.
        norm (str, optional): ``'layer'`` (LayerNorm over channels), ``'group'`` (GroupNorm of 32 groups, the layout
            of the detection experiments) or None. ``'inner'`` has no parameters, so its norms have none either.
            Defaults to ``'layer'``.
        bias (bool): Whether the projections and the gate have biases. Defaults to True.
        embed_value (bool): Mix ``v(x')`` instead of ``x``. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If ``kernel_size`` is no int.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide, ``d`` of ``embed_dims`` and window side ``K``.

        - Parameters: ``bilinear``: ``d (Cx + Cy) + 2 d + 2 (Cx + Cy)``, the last term for the norms. ``plain``:
          ``d Cx`` more. ``gated``: ``d Cx + d + Cx + 1`` more, with the shared gate ``Cx + 1``. ``inner``: none. An
          embedded value of ``D`` channels: ``D (Cx + 1)`` more. Defaults for 256 channels: 25,953.
        - Multiply-accumulates per position of the feature, at twice its size: ``bilinear``:
          ``4 Cy d + Cx d + 4 K^2 (d + Cx)``. ``plain``: ``Cx d`` more. ``gated``: ``Cx d + Cx + 5 d`` more. ``inner``:
          ``8 K^2 Cx``.

    Source: https://arxiv.org/abs/2209.12866
    """

    variants = {
        'SAPA-I': dict(similarity='inner'),
        'SAPA-B': dict(similarity='bilinear'),
        'SAPA-G': dict(similarity='gated'),
    }

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        out_channels: int | None = None,
        similarity: str = 'gated',
        gate: str = 'separate',
        kernel_size: int = 5,
        embed_dims: int = 32,
        normalization: str = 'softmax',
        norm: str | None = 'layer',
        bias: bool = True,
        embed_value: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, out_channels, init_cfg)
        require_choice('similarity', similarity, SIMILARITIES)
        require_choice('gate', gate, GATES)
        require_choice('norm', norm, NORMS)
        require_positive_int('embed_dims', embed_dims)
        check_kernel_size(kernel_size)
        check_normalization(normalization)
        self.similarity = similarity
        self.kernel_size = kernel_size
        self.normalization = normalization
        self.shared_gate = similarity == 'gated' and gate == 'shared'
        if (similarity == 'inner' or self.shared_gate) and self.guide_channels != in_channels:
            name = "similarity='inner'" if similarity == 'inner' else "gate='shared'"
            raise ValueError(
                f'{name} needs guide and feature of the same number of channels, '
                f'got {self.guide_channels} and {in_channels}'
            )

        affine = similarity != 'inner'
        self.norm_y = make_norm(norm, self.guide_channels, affine)
        self.norm_x = make_norm(norm, in_channels, affine)
        if similarity == 'bilinear':
            self.q = nn.Conv2d(self.guide_channels, embed_dims, 1, bias=bias)
        elif similarity == 'plain':
            self.qy = nn.Conv2d(self.guide_channels, embed_dims, 1, bias=bias)
            self.qx = nn.Conv2d(in_channels, embed_dims, 1, bias=False)  # a second bias would be the first again
        elif self.shared_gate:
            self.q = nn.Conv2d(self.guide_channels, embed_dims, 1, bias=bias)
            self.gate = nn.Conv2d(in_channels, 1, 1, bias=bias)
        elif similarity == 'gated':
            self.qy = nn.Conv2d(self.guide_channels, embed_dims, 1, bias=bias)
            self.qx = nn.Conv2d(in_channels, embed_dims, 1, bias=bias)
            self.gate = nn.Conv2d(in_channels, 1, 1, bias=bias)
        if similarity != 'inner':
            self.k = nn.Conv2d(in_channels, embed_dims, 1, bias=bias)
        if embed_value or self.out_channels != in_channels:
            self.v = nn.Conv2d(in_channels, self.out_channels, 1, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections normal with standard deviation 0.02, biases 0, norms the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.reset_parameters()

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``feature`` to the size of ``guide``.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size, odd ratios and smaller than the feature too.

        Returns:
            ``(N, out_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        query, key, value = self.embed(feature, guide)
        return point_affiliation(query, key, value, self.kernel_size, self.normalization)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The kernels that :meth:`forward` mixes with, ``(N, K*K, H, W)``, to look at."""
        query, key, _ = self.embed(feature, guide)
        return affiliation_kernels(query, key, self.kernel_size, self.normalization)

    def embed(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query ``(N, D, H, W)``, key ``(N, D, h, w)`` and value ``(N, out_channels, h, w)``."""
        self.check_inputs(feature, guide)
        size = guide.shape[2:]
        v = [self.v] if hasattr(self, 'v') else []
        # A 1x1 convolution commutes with broadcasting to the positions of a cell: the feature is projected while small.
        if self.similarity == 'inner':
            key = self.norm_x(feature)
            query = self.norm_y(guide)
            value = [layer(key) for layer in v]
        elif self.similarity == 'bilinear':
            key, *value = project(self.norm_x, feature, self.k, *v)
            (query,) = project(self.norm_y, guide, self.q)
        elif self.similarity == 'plain':
            key, *value = project(self.norm_x, feature, self.k, *v)
            (y,) = project(self.norm_y, guide, self.qy)
            query = y + nearest(self.qx(feature), size)
        elif self.shared_gate:
            key, gate, x, *value = project(self.norm_x, feature, self.k, self.gate, self.q, *v)
            (y,) = project(self.norm_y, guide, self.q)
            query = mix(gate, x, y)  # q(g y' + (1 - g) x'): the bias of q counts g + (1 - g) = 1 times
        else:
            key, gate, *value = project(self.norm_x, feature, self.k, self.gate, *v)
            (y,) = project(self.norm_y, guide, self.qy)
            query = mix(gate, self.qx(feature), y)
        return query, key, value[0] if value else feature

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        """Rename and reshape the published layouts in place; this module's own passes unchanged."""
        for old, new in (('q.proj_y', 'qy'), ('q.proj_x', 'qx'), ('q.gate', 'gate'), ('q.proj', 'q'), ('k.proj', 'k')):
            for kind in ('weight', 'bias'):
                if f'{prefix}{old}.{kind}' in state_dict:
                    state_dict[f'{prefix}{new}.{kind}'] = state_dict.pop(f'{prefix}{old}.{kind}')
        if self.similarity == 'plain' and f'{prefix}q.weight' in state_dict:
            weight = state_dict.pop(f'{prefix}q.weight')
            state_dict[f'{prefix}qy.weight'] = weight[:, : self.guide_channels]
            state_dict[f'{prefix}qx.weight'] = weight[:, self.guide_channels :]
            if f'{prefix}q.bias' in state_dict:
                state_dict[f'{prefix}qy.bias'] = state_dict.pop(f'{prefix}q.bias')
        for name in ('q', 'qy', 'qx', 'gate', 'k', 'v'):
            weight = state_dict.get(f'{prefix}{name}.weight')
            if weight is not None and weight.dim() == 2:
                state_dict[f'{prefix}{name}.weight'] = weight[:, :, None, None]


def mix(gate: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``g * y + (1 - g) * x`` at the size of ``y``, with ``g = sigmoid(gate)``; ``gate`` and ``x`` are smaller."""
    g = torch.sigmoid(gate)
    size = y.shape[2:]
    return torch.addcmul(nearest((1 - g) * x, size), nearest(g, size), y)


def project(norm: nn.Module, x: Tensor, *convs: nn.Conv2d) -> tuple[Tensor, ...]:
    """Several 1x1 convolutions of the normalised map; with :class:`ChannelNorm` in one pass over it."""
    if not isinstance(norm, ChannelNorm):
        x = norm(x)
        return tuple(conv(x) for conv in convs)
    weight = torch.cat([conv.weight for conv in convs])
    biases = [conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias for conv in convs]
    return norm.project(x, weight, torch.cat(biases)).split([len(conv.weight) for conv in convs], 1)


def make_norm(kind: str | None, channels: int, affine: bool = True) -> nn.Module:
    """The normalisation that ``norm`` names, for NCHW maps."""
    if kind == 'layer':
        return ChannelNorm(channels, elementwise_affine=affine)
    if kind == 'group':
        if channels % 32:
            raise ValueError(f"norm='group' has 32 groups and needs channels divisible by 32, got {channels}")
        return nn.GroupNorm(32, channels, affine=affine)
    return nn.Identity()
