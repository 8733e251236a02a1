# SPDX-License-Identifier: Apache-2.0
"""Look into the upsamplers of a model: what goes in, what they mix with, what comes out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..upsamplers import BaseUpsampler
from .affiliation import draw_affiliation


@dataclass
class Stage:
    """One call of an upsampler, of the first image: maps as float32 on the CPU."""

    #: Name of the module in the model.
    name: str
    #: ``(C, h, w)``
    feature: Tensor
    #: ``(Cg, H, W)``
    guide: Tensor
    #: ``(C_out, H, W)``
    result: Tensor
    #: ``(K*K, H, W)``, or None where the upsampler does not mix a window.
    kernels: Tensor | None
    #: Whether the maps lie over the picture; those of a mask head are of a region of it.
    of_picture: bool = True
    #: RGB input of the network in this call, with its padding, ``(H, W, 3)`` uint8; None where it is not known.
    picture: np.ndarray | None = None

    @property
    def bilinear(self) -> Tensor:
        """The feature, interpolated to the same size, ``(C, H, W)``."""
        return F.interpolate(self.feature[None], self.result.shape[1:], mode='bilinear', align_corners=False)[0]

    @property
    def extents(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width in pixels of :attr:`picture` that the guide covers, and that the feature covers.

        More than the picture where its sides are no multiples of the stride: 8 rows of stride 64 cover 512, not 480.
        """
        pixels = self.picture.shape[:2]
        return tuple(tuple(map(_extent, x.shape[1:], pixels)) for x in (self.result, self.feature))


def _extent(cells: int, pixels: int) -> int:
    """Pixels that a row of cells covers: strides are powers of two, and sizes are rounded up, or else down."""
    for rounded in (lambda stride: -(-pixels // stride), lambda stride: pixels // stride):
        stride = 1
        while rounded(stride) > cells:
            stride *= 2
        if rounded(stride) == cells:
            return cells * stride
    return pixels


@dataclass
class Recording:
    """What :func:`record_upsamplers` saw."""

    stages: list[Stage] = field(default_factory=list)
    #: RGB input of the network, with its padding, ``(H, W, 3)`` uint8; the latest where there were several, None for a
    #: model without data preprocessor.
    picture: np.ndarray | None = None

    @property
    def first(self) -> list[Stage]:
        """The stages of the first input: of a picture that is cut into windows, those of the first window."""
        return [stage for stage in self.stages if stage.picture is self.stages[0].picture]


@contextmanager
def record_upsamplers(model: nn.Module) -> Iterator[Recording]:
    """Record every call of an upsampler of ``model`` while the context lasts.

    Args:
        model: Any model with upsamplers of this package, such as what ``init_model`` of mmseg or ``init_detector`` of
            mmdet return.

    Yields:
        The recording, filled by the model's forward passes: stages in the order in which they run.

    Raises:
        ValueError: If the model has no upsampler.
    """
    upsamplers = {name: module for name, module in model.named_modules() if isinstance(module, BaseUpsampler)}
    if not upsamplers:
        raise ValueError(
            'the model has no upsampler to look into: its config sets no upsample_cfg '
            "(interpolation is upsample_cfg=dict(type='sapa_mm.Bilinear'))"
        )
    recording = Recording()
    handles = [
        module.register_forward_hook(partial(_add_stage, recording, name)) for name, module in upsamplers.items()
    ]
    if hasattr(model, 'data_preprocessor'):
        preprocessor = model.data_preprocessor
        handles.append(
            preprocessor.register_forward_hook(
                lambda module, inputs, data: _keep_picture(recording, preprocessor, data['inputs'])
            )
        )
        if isinstance(getattr(model, 'backbone', None), nn.Module):  # sees the windows that a picture is cut into
            handles.append(
                model.backbone.register_forward_pre_hook(
                    lambda module, inputs: _keep_picture(recording, preprocessor, next(iter(inputs), None))
                )
            )
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _add_stage(recording: Recording, name: str, module: BaseUpsampler, inputs: tuple, result: Tensor) -> None:
    feature, guide, *_ = inputs
    if not len(feature):  # no region of interest
        return
    with torch.no_grad():
        maps = [x[0].detach().float().cpu() for x in (feature, guide, result)]
        kernels = _window_kernels(module, feature[:1], guide[:1])
        of_picture = 'roi_head' not in name.split('.')
        recording.stages.append(Stage(name, *maps, kernels, of_picture, recording.picture))


def _window_kernels(module: BaseUpsampler, feature: Tensor, guide: Tensor) -> Tensor | None:
    if not hasattr(module, 'kernels'):
        return None
    kernels = module.kernels(feature, guide)[0].detach().float().cpu()
    if kernels.dim() != 3:  # points that lie anywhere, not a window
        return None
    kernels = kernels[: len(kernels) // getattr(module, 'groups', 1)]
    side = round(len(kernels) ** 0.5)
    return kernels if side % 2 and side * side == len(kernels) else None


def _keep_picture(recording: Recording, preprocessor: nn.Module, inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor):
        return
    image = inputs[0].detach().float()[:3]  # a trimap may follow the colours
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        image = image * std + mean
    # mmsegmentation of the classic stack calls it without the underscore; one that knows no order takes RGB
    convert = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', True))
    if not convert:  # as loaded: BGR
        image = image.flip(0)
    recording.picture = image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


@dataclass(frozen=True)
class _Basis:
    """Mean and three principal directions of a map, and the range of the map along them."""

    mean: Tensor  # (C,)
    directions: Tensor  # (C, 3)
    low: Tensor  # (3,)
    high: Tensor  # (3,)

    @classmethod
    def of(cls, x: Tensor) -> '_Basis':
        points = x.flatten(1).T.double()
        mean = points.mean(0)
        _, vectors = torch.linalg.eigh((points - mean).T @ (points - mean))
        directions = vectors.flip(1)[:, :3]
        # An eigenvector has no sign: its largest entry is positive, so that the same map has the same colours.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = F.pad(directions * largest.sign(), (0, 3 - directions.shape[1]))
        return cls(mean, directions, *cls._range((points - mean) @ directions))

    @staticmethod
    def _range(projected: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (torch.quantile(projected[:: 1 + len(projected) // 100_000], q, dim=0) for q in (0.01, 0.99))
        return low, high

    def colours(self, x: Tensor, own_range: bool = False) -> np.ndarray:
        """RGB in [0, 1], ``(H, W, 3)``."""
        projected = (x.flatten(1).T.double() - self.mean) @ self.directions
        low, high = self._range(projected) if own_range else (self.low, self.high)
        rgb = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return rgb.reshape(*x.shape[1:], 3).numpy()


def draw_stages(stages: Sequence[Stage], neighbour: tuple[int, int] | None = None):
    """Draw a row for each stage: guide, feature, kernel map, upsampled feature, and bilinear's of the same feature.

    Maps are shown as their first three principal components in red, green and blue. All maps of a row share one basis
    and one range of colours, those of the feature; the guide has its own range, and its own basis if it has another
    number of channels. The kernel map is the weight that each position gives to one neighbour of its window: the share
    of the values that comes from there.

    Args:
        stages: As recorded by :func:`record_upsamplers`, at least one.
        neighbour: The neighbour of the kernel map as (row, column) from the centre of the window, such as (-1, 0) for
            the one above. Defaults to the top left of each window.

    Returns:
        A ``matplotlib.figure.Figure``, to be saved with ``savefig(path)``.

    Raises:
        ValueError: If there is no stage, or the neighbour lies outside a window.
    """
    if not stages:
        raise ValueError('there is no stage to draw: no upsampler has run')
    figure, rows = _grid(len(stages), 5)
    for stage, row in zip(stages, rows, strict=True):
        basis = _Basis.of(stage.feature)
        height, width = stage.feature.shape[1:]
        for axes, title, x in (
            (row[0], f'guide {_size(stage.guide)}', stage.guide),
            (row[1], f'feature {_size(stage.feature)}', stage.feature),
            (row[3], f'upsampled {_size(stage.result)}', stage.result),
            (row[4], 'bilinear', stage.bilinear),
        ):
            own = basis if len(x) == len(stage.feature) else _Basis.of(x)
            _show(axes, title, own.colours(x, own_range=x is stage.guide))
        _draw_kernel_map(figure, row[2], stage, neighbour)
        row[0].set_ylabel(f'{stage.name}\n{height}x{width} to {_size(stage.result)}', fontsize=7)
    return figure


def _draw_kernel_map(figure, axes, stage: Stage, neighbour: tuple[int, int] | None) -> None:
    if stage.kernels is None:
        axes.text(0.5, 0.5, 'mixes no window', ha='center', va='center', fontsize=8, transform=axes.transAxes)
        axes.set_axis_off()
        return
    side = round(len(stage.kernels) ** 0.5)
    dy, dx = (-(side // 2), -(side // 2)) if neighbour is None else neighbour
    if max(abs(dy), abs(dx)) > side // 2:
        raise ValueError(f'neighbour must lie within {side // 2} of the centre of a {side}x{side} window, got {dy, dx}')
    kernel_map = stage.kernels[(dy + side // 2) * side + dx + side // 2]
    shown = _show(axes, f'kernel map {dy:+d}, {dx:+d} of {side}x{side}', kernel_map.numpy(), cmap='viridis', vmin=0)
    figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02).ax.tick_params(labelsize=6)


def draw_kernels(stage: Stage, points: Sequence[tuple[int, int]] | None = None):
    """Draw the kernels of a few points over the network's input, with :func:`sapa_mm.visualization.draw_affiliation`.

    Args:
        stage: Recorded, with a picture that its maps lie over, and with kernels.
        points: ``(y, x)`` in pixels of the stage's picture. Defaults to :func:`choose_points`.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: If the stage has no kernels or no picture, or a point lies outside the picture.
    """
    if stage.kernels is None or stage.picture is None or not stage.of_picture:
        raise ValueError(f'{stage.name} has no kernels of a window over a picture to draw')
    points = choose_points(stage.picture) if points is None else points
    size = tuple(stage.feature.shape[1:])
    return draw_affiliation(stage.picture, stage.kernels, points, size, extents=stage.extents)


def draw_upsampled(models: Mapping[str, Sequence[Stage]]):
    """Draw the upsampled feature of each stage, one row per stage and one column per model.

    Every map has a basis of its own, that of its feature: features of two models have nothing in common.

    Args:
        models: Stages by name of the model, at least one of each; of models with more stages, the last ones are drawn,
            which are the finest.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: If a model has no stage.
    """
    count = min(map(len, models.values()), default=0)
    if not count:
        raise ValueError('there is no stage to draw: no upsampler has run')
    figure, rows = _grid(count, len(models))
    for column, (name, stages) in enumerate(models.items()):
        for row, stage in zip(rows, stages[-count:], strict=True):
            basis = _Basis.of(stage.feature if len(stage.feature) == len(stage.result) else stage.result)
            _show(row[column], f'{name}\n{stage.name}, {_size(stage.result)}', basis.colours(stage.result))
    return figure


def draw_maps(picture: np.ndarray, rows: Sequence[Mapping[str, Tensor]]):
    """Draw a picture beside maps of it, a row for each feature, such as before and after upsampling.

    All maps of a row have the basis and the range of its first one, so equal colours are equal values.

    Args:
        picture: ``(H, W, 3)`` uint8.
        rows: Maps ``(C, h, w)`` by title, as many in each row; of one number of channels within a row.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: If there is no map, or rows differ in number.
    """
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError(f'rows must have one and the same number of maps, got {[len(row) for row in rows]}')
    figure, grid = _grid(len(rows), len(rows[0]) + 1)
    for axes, row in zip(grid, rows, strict=True):
        _show(axes[0], 'picture', picture)
        basis = _Basis.of(next(iter(row.values())))
        for place, (title, x) in zip(axes[1:], row.items(), strict=True):
            _show(place, title, basis.colours(x))
    return figure


def draw_row(pictures: Mapping[str, np.ndarray]):
    """Draw pictures, ``(H, W, 3)``, side by side with their names: a ``matplotlib.figure.Figure``."""
    figure, rows = _grid(1, len(pictures))
    for axes, (title, picture) in zip(rows[0], pictures.items(), strict=True):
        _show(axes, title, picture)
    return figure


def choose_points(picture: np.ndarray, count: int = 4) -> list[tuple[int, int]]:
    """Choose points ``(y, x)`` to look at: the strongest edges of a picture, apart from each other, and its flattest.

    Args:
        picture: ``(H, W, 3)`` uint8.
        count: How many, positive. Defaults to 4.

    Returns:
        ``count - 1`` points on edges, then one where the picture is flat, none within a sixteenth of the border.
    """
    import cv2

    height, width = picture.shape[:2]
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), max(min(height, width) / 128, 0.8))
    edges = sum(np.hypot(*np.gradient(smooth[..., c])) for c in range(3))
    border = max(min(height, width) // 16, 1)
    inside = np.zeros(edges.shape, bool)
    inside[border:-border, border:-border] = True
    if not inside.any():
        inside[:] = True
    nearby = cv2.blur(edges, (2 * border + 1, 2 * border + 1))
    y, x = np.mgrid[:height, :width]
    points = []
    free = inside.copy()
    for _ in range(count - 1):
        point = np.unravel_index(np.argmax(np.where(free, edges, -1)), edges.shape)
        points.append(point)
        free &= np.hypot(y - point[0], x - point[1]) > min(height, width) / 4
        if not free.any():
            free = inside.copy()
    points.append(np.unravel_index(np.argmin(np.where(inside, nearby, np.inf)), edges.shape))
    return [tuple(map(int, point)) for point in points]


def rgb_of(figure) -> np.ndarray:
    """The picture of a figure, ``(H, W, 3)`` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _size(x: Tensor) -> str:
    return f'{x.shape[1]}x{x.shape[2]}'


def _grid(rows: int, columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * columns, 2.5 * rows + 0.2), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axes, title: str, picture: np.ndarray, **options):
    axes.set_title(title, fontsize=8)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(picture, interpolation='nearest', **options)
