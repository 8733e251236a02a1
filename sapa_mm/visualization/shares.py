# SPDX-License-Identifier: Apache-2.0
"""Of what is one point of an upsampled map mixed? Shares of the low-resolution positions, and a drawing of them."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..upsamplers import NAF, Bilinear, ColourAffiliation, Nearest, SAPADeform
from .features import _window_kernels

#: Share that has the brightest colour of a drawing, at most.
BRIGHT = 0.5


@dataclass(frozen=True)
class Shares:
    """What one point of a result is mixed of."""

    #: Share of each position of the feature, ``(h, w)`` float32 on the CPU; less than 1 in all where a window hangs
    #: over the border.
    cells: Tensor
    #: Row and column of the position that the point lies in.
    centre: tuple[int, int]
    #: Side ``K`` of the window that is mixed; None where an upsampler has none.
    kernel_size: int | None = None
    #: Row and column of each sample, ``(P, 2)``, of an upsampler that reads between positions.
    places: Tensor | None = None

    @property
    def largest(self) -> float:
        return float(self.cells.max())

    @property
    def entropy(self) -> float:
        """Of the shares inside the map, divided by their sum, in nats; NaN where one is negative."""
        if self.cells.min() < -1e-6:
            return float('nan')
        shares = self.cells.clamp(min=0).double()
        shares = shares / shares.sum().clamp(min=1e-12)
        return float(torch.special.entr(shares).sum())

    @property
    def reach(self) -> int:
        """Positions from the centre to the farthest one whose share can be seen."""
        rows, columns = (self.cells.abs() >= 0.005).nonzero(as_tuple=True)
        if not len(rows):
            return 0
        return int(max((rows - self.centre[0]).abs().max(), (columns - self.centre[1]).abs().max()))


class Mixture:
    """The shares of every point of one call of an upsampler; computed once, then asked for point by point.

    Args:
        cells: Height and width of the feature.
        size: Height and width of the result.
        at: Gives the :class:`Shares` of row and column of the result.
    """

    def __init__(self, cells: tuple[int, int], size: tuple[int, int], at: Callable[[int, int], Shares]) -> None:
        self.cells = tuple(cells)
        self.size = tuple(size)
        self._at = at

    def at(self, row: int, column: int) -> Shares:
        """The shares of one point of the result.

        Raises:
            ValueError: If the point lies outside the result.
        """
        if not (0 <= row < self.size[0] and 0 <= column < self.size[1]):
            raise ValueError(f'the point {(row, column)} lies outside the result of {self.size[0]} x {self.size[1]}')
        return self._at(row, column)

    def centre(self, row: int, column: int) -> tuple[int, int]:
        """Row and column of the position of the feature that a point of the result lies in."""
        return row * self.cells[0] // self.size[0], column * self.cells[1] // self.size[1]


def mixture_of(upsampler: nn.Module, feature: Tensor, guide: Tensor) -> Mixture | None:
    """What the points of ``upsampler(feature, guide)`` are mixed of; of several groups of channels, the first.

    Args:
        upsampler: An upsampler of this package in evaluation mode. ``ColourAffiliation`` and ``NAF`` take the picture
            as guide.
        feature: ``(C, h, w)``.
        guide: ``(Cg, H, W)``.

    Returns:
        The mixture, or None where an upsampler does not say what it mixes. For FADE and FreqFusion it is that of the
        kernels, before what they add; FlowAlign's with a gate likewise.
    """
    if isinstance(upsampler, (Bilinear, Nearest)):
        kind = type(upsampler)
        options = dict(align_corners=upsampler.align_corners) if kind is Bilinear else {}
        return _linear(partial(kind(1, 1, **options), guide=guide[None, :1]), feature)
    if isinstance(upsampler, (ColourAffiliation, NAF)):
        groups = getattr(upsampler, 'num_heads', 1)
        return _linear(lambda one: upsampler(one.expand(-1, groups, -1, -1), guide[None]), feature)
    with torch.no_grad():
        if hasattr(upsampler, 'kernels'):
            kernels = _window_kernels(upsampler, feature[None], guide[None])
            if kernels is not None:
                return _window(kernels, feature.shape[1:])
        # FreqFusion has positions of its own maps
        if not hasattr(upsampler, 'positions') or type(upsampler).__name__ == 'FreqFusion':
            return None
        places = upsampler.positions(feature[None], guide[None])[0, 0].float().cpu()
        places = places if places.dim() == 4 else places[None]
        if hasattr(upsampler, 'kernels'):
            weights = upsampler.kernels(feature[None], guide[None])[0, 0].float().cpu()
        else:
            weights = torch.ones_like(places[:, 0])
        outside = 0 if isinstance(upsampler, SAPADeform) or type(upsampler).__name__ in _ZEROS else None
        return _samples(weights, places, feature.shape[1:], outside)


#: Upsamplers that read zeros beyond the map; others read its border.
_ZEROS = ('FlowAlign', 'LDAAQU', 'ReSFU')


def _linear(call: Callable[[Tensor], Tensor], feature: Tensor) -> Mixture:
    """Of a call that is linear in the feature: a share is the derivative by it."""
    leaf = feature.new_zeros(1, 1, *feature.shape[1:]).requires_grad_()
    with torch.enable_grad():
        out = call(leaf)

    def at(row, column):
        (cells,) = torch.autograd.grad(out[0, 0, row, column], leaf, retain_graph=True)
        return Shares(cells[0, 0].float().cpu(), mixture.centre(row, column))

    mixture = Mixture(feature.shape[1:], out.shape[2:], at)
    return mixture


def _window(kernels: Tensor, cells: tuple[int, int]) -> Mixture:
    side = round(len(kernels) ** 0.5)
    radius = side // 2

    def at(row, column):
        (y, x), (height, width) = mixture.centre(row, column), cells
        around = kernels.new_zeros(height + 2 * radius, width + 2 * radius)
        around[y : y + side, x : x + side] = kernels[:, row, column].view(side, side)
        return Shares(around[radius : radius + height, radius : radius + width].clone(), (y, x), side)

    mixture = Mixture(cells, kernels.shape[1:], at)
    return mixture


def _samples(weights: Tensor, places: Tensor, cells: tuple[int, int], outside: int | None) -> Mixture:
    """Of samples between the positions, ``weights`` ``(P, H, W)`` and ``places`` ``(P, 2, H, W)``: ``x``, ``y``."""

    def at(row, column):
        x, y = places[:, :, row, column].unbind(1)
        if outside is None:
            x, y = x.clamp(0, cells[1] - 1), y.clamp(0, cells[0] - 1)
        shares = weights.new_zeros(cells)
        for step_y in (0, 1):
            for step_x in (0, 1):
                i, j = y.floor().long() + step_y, x.floor().long() + step_x
                share = weights[:, row, column] * (1 - (y - i).abs()) * (1 - (x - j).abs())
                inside = (i >= 0) & (i < cells[0]) & (j >= 0) & (j < cells[1])
                shares.index_put_((i[inside], j[inside]), share[inside], accumulate=True)
        return Shares(shares, mixture.centre(row, column), places=torch.stack([y, x], 1))

    mixture = Mixture(cells, weights.shape[1:], at)
    return mixture


def bilinear_kernels(cells: tuple[int, int], size: tuple[int, int], kernel_size: int = 5) -> Tensor:
    """Kernels of bilinear interpolation in the form of those of the upsamplers.

    Args:
        cells: Height and width of the feature.
        size: Height and width of the result, no smaller.
        kernel_size: Window side ``K``, odd, at least 3.

    Returns:
        ``(K*K, H, W)``.
    """
    (height, width), radius = cells, kernel_size // 2
    count = height * width
    shares = F.interpolate(torch.eye(count).view(1, count, height, width), size, mode='bilinear', align_corners=False)
    shares = F.pad(shares.view(height, width, *size), (0, 0, 0, 0, radius, radius, radius, radius))
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    row, column = y * height // size[0], x * width // size[1]
    return torch.stack([shares[row + i, column + j, y, x] for i in range(kernel_size) for j in range(kernel_size)])


def describe(shares: Shares) -> str:
    """One line of plain English: largest share, spread, and what was lost."""
    row, column = divmod(int(shares.cells.argmax()), shares.cells.shape[1])
    down, right = row - shares.centre[0], column - shares.centre[1]
    steps = [f'{abs(n)} {name[n > 0]}' for n, name in ((down, ('up', 'down')), (right, ('left', 'right'))) if n]
    where = ' and '.join(steps) or 'its own cell'
    line = f'Largest share {100 * shares.largest:.0f} %: {where}.'
    if shares.kernel_size:
        line += f' Window of {shares.kernel_size} x {shares.kernel_size}.'
    entropy = shares.entropy
    if entropy == entropy:
        line += f' Spread as over {np.exp(entropy):.1f} equal cells (entropy {max(entropy, 0):.2f}).'
    else:
        line += ' Some shares are negative.'
    lost = 1 - float(shares.cells.sum())
    if abs(lost) > 0.005:
        line += f' {100 * lost:.0f} % lies beyond the border.'
    return line


def draw_shares(
    picture: np.ndarray,
    shares: Shares,
    point: tuple[float, float],
    extent: tuple[int, int],
    radius: int,
    label: str = '',
) -> str:
    """Draw the shares around a point over the picture, each written into its cell in per cent, as an SVG.

    Args:
        picture: ``(H, W, 3)`` uint8.
        shares: Of the point.
        point: ``(y, x)`` in pixels of the picture; drawn as a cross.
        extent: Height and width in pixels that the feature covers, from the top left of the picture.
        radius: Cells to show on each side of the one that the point lies in.
        label: What is shown, for those who cannot see it.

    Returns:
        The text of an ``<svg>`` without a size of its own: it takes the width that it is given.
    """
    from html import escape

    from matplotlib import colormaps

    (height, width), (y, x), side = shares.cells.shape, shares.centre, 2 * radius + 1
    tall, wide = extent[0] / height, extent[1] / width  # of a cell, in pixels
    top, left, unit = (y - radius) * tall, (x - radius) * wide, 100
    view = unit * side
    parts = [
        f'<svg viewBox="0 0 {view} {view}" role="img" aria-label="{escape(label, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg" data-shares="{side}">',
        f'<rect width="{view}" height="{view}" fill="#444"/>',
    ]
    # the part of the picture that is seen
    y0, x0 = max(int(top), 0), max(int(left), 0)
    y1, x1 = (
        int(min(-(-(at + side * cell) // 1), end)) for at, cell, end in zip((top, left), (tall, wide), picture.shape)
    )
    if y1 > y0 and x1 > x0:
        place = [(x0 - left) / wide, (y0 - top) / tall, (x1 - x0) / wide, (y1 - y0) / tall]
        box = ' '.join(f'{name}="{unit * n:.1f}"' for name, n in zip(('x', 'y', 'width', 'height'), place))
        parts.append(
            f'<image {box} preserveAspectRatio="none" style="image-rendering:pixelated" '
            f'href="{data_url(picture[y0:y1, x0:x1])}"/>'
        )
    texts = []
    strongest = min(max(shares.largest, 0.1), BRIGHT)
    for i in range(side):
        for j in range(side):
            row, column = y - radius + i, x - radius + j
            corner = f'x="{unit * j}" y="{unit * i}" width="{unit}" height="{unit}" stroke="#fff"'
            if not (0 <= row < height and 0 <= column < width):
                parts.append(f'<rect {corner} fill="#444" stroke-opacity=".15"/>')
                continue
            share = float(shares.cells[row, column])
            shown = abs(share) >= 0.005
            level = min(max(share, 0) / strongest, 1)
            red, green, blue = (int(255 * c) for c in colormaps['inferno'](0.15 + 0.8 * level)[:3])
            parts.append(
                f'<rect {corner} stroke-width="2" stroke-opacity="{0.9 if shown else 0.35}" '
                f'fill="rgb({red},{green},{blue})" fill-opacity="{0.25 + 0.5 * level if shown else 0.0:.2f}"/>'
            )
            if shown:
                texts.append(
                    f'<text x="{unit * (j + 0.5)}" y="{unit * (i + 0.5)}" text-anchor="middle" '
                    f'dominant-baseline="central" font-size="{34 if level < 0.6 else 40}" font-family="sans-serif" '
                    f'font-weight="600" fill="#fff" stroke="#000" stroke-width="6" paint-order="stroke" '
                    f'stroke-linejoin="round">{100 * share:.0f}</text>'
                )
    for sample_y, sample_x in [] if shares.places is None else shares.places.tolist():
        at = unit * (sample_x - x + radius + 0.5), unit * (sample_y - y + radius + 0.5)
        parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="9" fill="#0cf" stroke="#000" stroke-width="3"/>')
    at_y, at_x = unit * (point[0] - top) / tall, unit * (point[1] - left) / wide
    cross = f'M{at_x - 22:.1f} {at_y:.1f}h44M{at_x:.1f} {at_y - 22:.1f}v44'
    for colour, thick in (('#000', 14), ('#3f6', 7)):
        parts.append(f'<path d="{cross}" stroke="{colour}" stroke-width="{thick}" stroke-linecap="round" fill="none"/>')
    return ''.join([*parts, *texts, '</svg>'])


def data_url(picture: np.ndarray) -> str:
    """A picture, ``(H, W, 3)`` uint8, as the address of itself."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'
