# SPDX-License-Identifier: Apache-2.0
"""FreqFusion: low-pass kernels for the feature, high-pass kernels for the guide, and a resampler between."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import feature_assembly
from ..ops.checks import check_kernel_size
from ..ops.maps import nearest
from ..ops.sizes import within
from ..registry import MODELS
from .base import BaseUpsampler, copy_or_interpolate, fit, pixel_shuffle, require_choice, require_positive_int
from .sampling import full_precision, sample

MODES = ('nearest', 'bilinear')


@MODELS.register_module()
class FreqFusion(BaseUpsampler):
    r"""Frequency-aware fusion: the feature is smoothed inside regions, the guide sharpened at boundaries.

    With ``y`` the guide, ``x`` the feature, both compressed to ``m`` channels as ``cy`` and ``cx``, convolutions ``E1``
    to ``5^2`` and ``E2`` to ``3^2`` channels that both levels share, and ``assemble`` the mix of a window of positions
    (:func:`sapa_mm.ops.feature_assembly`), which at the size of its input is a filter::

        norm(M) = softmax(M) * hamming / sum of the same                             over the window
        a       = E2(cy),   cy' = 2 cy - assemble(cy, norm(a))
        b       = E1(cy')
        low     = norm(b + assemble(E1(cx), norm(b)))
        high    = norm(a + assemble(E2(cx), low))
        x_up    = assemble(x, low)
        y_out   = 2 y - assemble(y, high)

    Necks and heads that add the feature to a lateral take ``y_out + x_up`` (:meth:`fuse`); :meth:`forward` gives
    ``x_up`` alone, and :meth:`refine` all three results of the published module.

    With ``resample`` the enlarged feature is read once more, bilinearly, at positions that each group of its channels
    predicts. ``P`` and ``R`` are ``cy'`` and ``cx``, normalised if ``resample_norm`` is set, and joined with the cosine
    similarity of every position with its eight neighbours two positions away::

        offset = (O(R) + unshuffle(O'(P))) * sigmoid(S(R) + unshuffle(S'(P)))        3x3 convolutions
        x_up   = x_up at the cell's centre +- 1/4 + offset                           in positions of the feature

    Windows reach zeros outside the map, as in mmcv's operator; positions are clamped to it.

    The published module doubles the size. Here position ``(i, j)`` of a ``(H, W)`` guide belongs to the cell
    ``(floor(i * h / H), floor(j * w / W))`` of the feature, which is the same for a ratio of 2 and defined for any. The
    resampler's positions are made for twice the size of the feature: a guide one position short of that cuts them off,
    for any other ratio they are interpolated.

    Parameter names are the published ones, whose state dicts load. The Hamming windows and ``init_pos`` in them are
    constants of the options, not kept here.

    Args:
        in_channels (int): Channels ``Cx`` of the feature, and of the result; the authors' ``lr_channels``.
        guide_channels (int, optional): Channels ``Cy`` of the guide; the authors' ``hr_channels``. Defaults to
            ``in_channels``; :meth:`fuse` needs both equal.
        lowpass_kernel (int): Window side ``L`` of the low-pass kernels, odd, 1 to 15. Defaults to 5.
        highpass_kernel (int): Window side ``P`` of the high-pass kernels, odd, 1 to 15. Defaults to 3.
        encoder_kernel (int): Kernel side ``e`` of ``E1`` and ``E2``, odd. Defaults to 3.
        encoder_dilation (int): Their dilation. Defaults to 1.
        compressed_channels (int): Channels ``m`` that they see. The published models take an eighth of ``Cx + Cy`` in
            detectors, a quarter in SegNeXt. Defaults to 64.
        resample (bool): Use the resampler; the authors' ``feature_resample``, set in all published models. Defaults to
            False, as in the published module.
        resample_groups (int): Its groups ``G`` of channels, dividing ``in_channels``; ``feature_resample_group``.
            Defaults to 4.
        resample_norm (bool): Normalise its inputs, by GroupNorm of ``m // 8`` groups; ``feature_resample_norm``, unset
            in Mask2Former. Defaults to True.
        comp_feat_upsample (bool): Make kernels as above. Otherwise ``cy' = cy``, and what ``E1`` and ``E2`` make of
            ``cx`` is repeated over the positions of a cell instead of assembled. Defaults to True.
        use_high_pass (bool): Sharpen the guide; otherwise ``y_out = y`` and there is no ``E2``, which needs
            ``comp_feat_upsample=False`` or ``semi_conv=False``. Defaults to True.
        hr_residual (bool): ``y_out = 2 y - assemble(y, high)``; otherwise ``y - assemble(y, high)``. Defaults to True.
        semi_conv (bool): Convolve both levels where they are. Otherwise kernels come from ``nearest(cx) + cy`` alone,
            and ``x`` is enlarged first, then filtered. Defaults to True.
        hamming_window (bool): Weigh kernels by a Hamming window; unset in Mask2Former and SegNeXt. Defaults to True.
        upsample_mode (str): How ``x`` is enlarged without ``semi_conv``: ``'nearest'`` or ``'bilinear'``. Defaults to
            ``'nearest'``.
        init_cfg (dict or list[dict], optional): Initialisation on top of the published one.

    Raises:
        ValueError: If an option or a channel count is out of range.
        TypeError: If a window side is no int.

    Cost:
        With ``Cx`` channels of the feature, ``Cy`` of the guide, ``m`` compressed ones, ``G`` groups, encoder side
        ``e`` and ``k`` for ``L^2 + P^2``.

        - Parameters: ``m (Cx + Cy + 2) + k (e^2 m + 1)``. The resampler adds ``20 G (9 (m + 8) + 1)``, its norms
          ``4 m``. 52,514 for 256 channels, 104,690 with the resampler.
        - Multiply-accumulates per position of the feature, at twice its size:
          ``Cx m + 4 Cy m + 5 e^2 m k + 4 P^2 m + 4 L^2 k + 4 L^2 Cx + 4 P^2 Cy``. The convolutions of the resampler add
          ``9 (m + 8) 32 G``; its sampling and cosines are not counted.

    Source: https://arxiv.org/abs/2408.12879
    """

    variants = {'FreqFusion': dict(resample=True)}

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        lowpass_kernel: int = 5,
        highpass_kernel: int = 3,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        resample: bool = False,
        resample_groups: int = 4,
        resample_norm: bool = True,
        comp_feat_upsample: bool = True,
        use_high_pass: bool = True,
        hr_residual: bool = True,
        semi_conv: bool = True,
        hamming_window: bool = True,
        upsample_mode: str = 'nearest',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, guide_channels, init_cfg=init_cfg)
        check_kernel_size(lowpass_kernel)
        check_kernel_size(highpass_kernel)
        for name, value in dict(
            encoder_kernel=encoder_kernel,
            encoder_dilation=encoder_dilation,
            compressed_channels=compressed_channels,
            resample_groups=resample_groups,
        ).items():
            require_positive_int(name, value)
        require_choice('upsample_mode', upsample_mode, MODES)
        if encoder_kernel % 2 == 0:
            raise ValueError(f'encoder_kernel must be odd, got {encoder_kernel}')
        if not use_high_pass and comp_feat_upsample and semi_conv:
            raise ValueError(
                'without use_high_pass the kernels cannot use it: set comp_feat_upsample=False or semi_conv=False, '
                'got use_high_pass=False, comp_feat_upsample=True and semi_conv=True'
            )
        if resample and in_channels % resample_groups:
            raise ValueError(
                f'resample_groups must divide in_channels, got {resample_groups} groups and {in_channels} channels'
            )
        self.resample = resample
        self.lowpass_kernel = lowpass_kernel
        self.highpass_kernel = highpass_kernel
        self.comp_feat_upsample = comp_feat_upsample
        self.use_high_pass = use_high_pass
        self.hr_residual = hr_residual
        self.semi_conv = semi_conv
        self.upsample_mode = upsample_mode
        self.hr_channel_compressor = nn.Conv2d(self.guide_channels, compressed_channels, 1)
        self.lr_channel_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        encoder = dict(
            kernel_size=encoder_kernel,
            padding=encoder_kernel // 2 * encoder_dilation,
            dilation=encoder_dilation,
        )
        self.content_encoder = nn.Conv2d(compressed_channels, lowpass_kernel**2, **encoder)
        if use_high_pass:
            self.content_encoder2 = nn.Conv2d(compressed_channels, highpass_kernel**2, **encoder)
        self.dysampler = Resampler(compressed_channels, resample_groups, resample_norm) if resample else None
        for name, side in (('lowpass', lowpass_kernel), ('highpass', highpass_kernel)):
            self.register_buffer(f'hamming_{name}', hamming(side) if hamming_window else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions Xavier-uniform but ``E1`` and ``E2``, normal with deviation 0.001; biases 0; norms the identity.

        The authors' resampler has an initialisation of its own, which their pass over all convolutions overrides.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        if self.use_high_pass:
            nn.init.normal_(self.content_encoder2.weight, std=0.001)

    def forward(self, feature: Tensor, guide: Tensor, fused: bool = False) -> Tensor:
        """Upsample ``feature`` to the size of ``guide``.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.
            fused: Add the sharpened guide, as :meth:`fuse` does.

        Returns:
            ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        if fused:
            _, guide, upsampled = self.refine(feature, guide)
            return guide + upsampled
        cx, cy, low, _ = self._prepare(feature, guide)
        return self._upsample(feature, cx, cy, low)

    def fuse(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The sum of the upsampled feature and the sharpened guide."""
        return self(feature, guide, fused=True)

    def pair(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """The upsampled feature and the sharpened guide, which SegNeXt with FreqFusion concatenates."""
        _, guide, upsampled = self.refine(feature, guide)
        return upsampled, guide

    def refine(self, feature: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All that the published module returns.

        Args:
            feature: ``(N, in_channels, h, w)``.
            guide: ``(N, guide_channels, H, W)``, any size.

        Returns:
            The low-pass kernels, ``(N, L*L, H, W)``, the sharpened guide, ``(N, guide_channels, H, W)``, and the
            upsampled feature, ``(N, in_channels, H, W)``.

        Raises:
            ValueError: If ranks, batch sizes or channels do not fit.
        """
        cx, cy, low, high = self._prepare(feature, guide, self.use_high_pass)
        if high is not None:
            smooth = feature_assembly(guide, self._high(high), self.highpass_kernel)
            guide = (2 * guide if self.hr_residual else guide) - smooth
        return low, guide, self._upsample(feature, cx, cy, low)

    def kernels(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The low-pass kernels, ``(N, L*L, H, W)``, each window row-major: they mix what the resampler reads."""
        return self._prepare(feature, guide)[2]

    def _prepare(
        self, feature: Tensor, guide: Tensor, sharpen: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """``cx``, ``cy'``, the low-pass kernels and, to ``sharpen``, the logits of the high-pass kernels."""
        self.check_inputs(feature, guide)
        size, high = guide.shape[2:], None
        cy, cx = self.hr_channel_compressor(guide), self.lr_channel_compressor(feature)
        if not self.semi_conv:
            both = nearest(cx, size) + cy
            low = self._low(self.content_encoder(both))
            if sharpen:
                high = self.content_encoder2(both)
        elif not self.comp_feat_upsample:
            low = self._low(self.content_encoder(cy) + nearest(self.content_encoder(cx), size))
            if sharpen:
                high = self.content_encoder2(cy) + nearest(self.content_encoder2(cx), size)
        else:
            high = self.content_encoder2(cy)
            cy = 2 * cy - feature_assembly(cy, self._high(high), self.highpass_kernel)
            low = self.content_encoder(cy)
            low = low + feature_assembly(self.content_encoder(cx), self._low(low), self.lowpass_kernel)
            low = self._low(low)
            if sharpen:
                high = high + feature_assembly(self.content_encoder2(cx), low, self.lowpass_kernel)
        return cx, cy, low, high

    def _upsample(self, feature: Tensor, cx: Tensor, cy: Tensor, low: Tensor) -> Tensor:
        size = cy.shape[2:]
        if not self.semi_conv:
            bilinear = self.upsample_mode == 'bilinear'
            feature = F.interpolate(feature, size, mode='bilinear') if bilinear else nearest(feature, size)
        out = feature_assembly(feature, low, self.lowpass_kernel)
        return out if self.dysampler is None else self.dysampler(out, cx, cy)

    def _low(self, logits: Tensor) -> Tensor:
        return weighted_softmax(logits, self.hamming_lowpass)

    def _high(self, logits: Tensor) -> Tensor:
        return weighted_softmax(logits, self.hamming_highpass)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        for name in ('hamming_lowpass', 'hamming_highpass', 'dysampler.init_pos'):
            state_dict.pop(f'{prefix}{name}', None)


class Resampler(nn.Module):
    """Reads the enlarged feature once more, at positions predicted from the similarity of neighbours in both levels."""

    def __init__(self, channels: int, groups: int, norm: bool) -> None:
        super().__init__()
        self.groups = groups
        if norm and channels % 8:
            raise ValueError(f'resample_norm needs compressed_channels divisible by 8, got {channels}')
        self.norm_hr, self.norm_lr = (
            nn.GroupNorm(channels // 8, channels) if norm else nn.Identity() for _ in range(2)
        )
        inputs = channels + 8
        self.offset, self.direct_scale = (nn.Conv2d(inputs, 8 * groups, 3, padding=1) for _ in range(2))
        self.hr_offset, self.hr_direct_scale = (nn.Conv2d(inputs, 2 * groups, 3, padding=1) for _ in range(2))

    def forward(self, x_up: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
        size, cells = x_up.shape[2:], cx.shape[2:]
        x, y = self.positions(cx, cy).flatten(0, 1).unbind(1)
        # A guide cut short keeps the positions of the whole one; another ratio stretches them.
        cut = cut_short(size, cells, x.device)
        height, width = (
            torch.where(cut, 2.0 * c, 1.0 * s) if isinstance(cut, Tensor) else 2 * c if cut else s
            for s, c in zip(size, cells)
        )
        columns = (x + 0.5) * (width / cells[1]) - 0.5
        rows = (y + 0.5) * (height / cells[0]) - 0.5
        grouped = x_up.unflatten(1, (self.groups, -1)).flatten(0, 1)
        return sample(grouped, columns, rows).unflatten(0, (-1, self.groups)).flatten(1, 2)

    def positions(self, cx: Tensor, cy: Tensor) -> Tensor:
        """``(N, groups, 2, H, W)``: x, then y, in positions of the feature."""
        low, high = with_similarities(self.norm_lr(cx)), with_similarities(self.norm_hr(cy))
        cells, size = cx.shape[2:], cy.shape[2:]
        offset = self.offset(low) + self._gathered(self.hr_offset(high), cells)
        scale = self.direct_scale(low) + self._gathered(self.hr_direct_scale(high), cells)
        offset = full_precision(pixel_shuffle(offset * scale.sigmoid(), 2))
        rows, columns = (
            (torch.arange(2 * side, dtype=offset.dtype, device=offset.device) + 0.5) / 2 - 0.5 for side in cells
        )
        # channels of the offset: x of every group, then y of every group
        x, y = offset.chunk(2, dim=1)
        positions = fit(torch.cat([x + columns, y + rows[:, None]], dim=1), size, 2)
        return positions.unflatten(1, (2, self.groups)).transpose(1, 2)

    def _gathered(self, x: Tensor, cells: tuple[int, int]) -> Tensor:
        """The four values of every cell side by side: ``(N, C, H, W)`` -> ``(N, 4 C, h, w)``."""
        height, width = (2 * side for side in cells)
        cut = cut_short(x.shape[2:], cells, x.device)
        if isinstance(cut, Tensor):
            x = copy_or_interpolate(x, (height, width), cut)
        elif cut:
            # not F.pad, whose backward in channels_last surprises torch.compile: torch foretells other strides
            for dim, side in ((2, height), (3, width)):
                if x.shape[dim] < side:
                    x = torch.cat([x, x.narrow(dim, side - 2, 1)], dim)
        else:
            x = F.interpolate(x, (height, width), mode='bilinear')
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def cut_short(size: tuple[int, int], cells: tuple[int, int], device=None) -> bool | Tensor:
    """Whether :func:`fit` cuts instead of interpolating: at most one position is missing from twice the cells."""
    return within(tuple(2 * c - s for s, c in zip(size, cells)), 2, device)


def with_similarities(x: Tensor) -> Tensor:
    """``x``, ``(N, C, H, W)``, and the cosine of each position with the eight two positions away, 0 outside."""
    height, width = x.shape[2:]
    fine = full_precision(x)  # in half precision the eps is 0
    padded = F.pad(fine, (2, 2, 2, 2))
    cosines = [
        F.cosine_similarity(fine, padded[:, :, row : row + height, column : column + width], dim=1, eps=1e-8)
        for row in (0, 2, 4)
        for column in (0, 2, 4)
        if (row, column) != (2, 2)
    ]
    return torch.cat([x, torch.stack(cosines, 1).to(x.dtype)], 1)


def weighted_softmax(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Softmax over the channels, times ``weights``, normalised again."""
    kernels = logits.softmax(1)
    if weights is None:
        return kernels
    kernels = kernels * weights
    return kernels / kernels.sum(1, keepdim=True)


def hamming(side: int) -> Tensor:
    """Outer product of two symmetric Hamming windows, row-major, ``(side * side, 1, 1)``, in float32 as published."""
    window = torch.hamming_window(side, periodic=False, dtype=torch.float64)
    return torch.outer(window, window).flatten()[:, None, None].float()
