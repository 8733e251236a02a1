# SPDX-License-Identifier: Apache-2.0
"""Look at affiliation kernels: to which low-resolution positions does a point belong?"""

from collections.abc import Sequence

import numpy as np


def draw_affiliation(
    image: np.ndarray,
    kernels,
    points: Sequence[tuple[int, int]],
    feature_size: tuple[int, int],
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    extents: tuple[tuple[int, int], tuple[int, int]] | None = None,
):
    """Draw an image, its label maps and the affiliation kernels of a few points.

    The upper row shows the image with the points marked, and truth and prediction where given. Below, each point has
    a panel: the part of the image under its ``K x K`` window of low-resolution positions, each position's share of
    the kernel written into its cell and painted over it, and the point itself as a cross. A kernel near a boundary
    that follows the content has its weight on one side; bilinear upsampling would have it around the cross. Cells
    outside the map are drawn empty; their weight is lost, see the border rule of ``point_affiliation``.

    Args:
        image: RGB image, ``(H, W, 3)`` uint8.
        kernels: Normalised kernels of one image, ``(K*K, H_up, W_up)``, as a tensor or an array: one item of what
            ``SAPA.kernels(feature, guide)`` returns.
        points: Positions ``(y, x)`` to look at, in pixels of ``image``.
        feature_size: Height and width of the low-resolution map that the kernels point into.
        truth: True label map, ``(H, W)`` of integers. Defaults to None.
        prediction: Predicted label map, ``(H, W)`` of integers. Defaults to None.
        palette: RGB colours of the classes in [0, 255]; labels beyond it are drawn black. Defaults to matplotlib's
            ``tab20``.
        extents: Height and width in pixels that the kernels' map covers, and that the low-resolution map covers, both
            from the top left of ``image``. A network that pads its input sees more than the picture: a detector with
            stride 32 takes 1067 columns as 1088. :attr:`sapa_mm.visualization.Stage.extents` has those of a recorded
            stage. Defaults to the size of ``image`` for both, which is right where no side was padded or rounded.

    Returns:
        A ``matplotlib.figure.Figure``, to be saved with ``savefig(path)``.

    Raises:
        ValueError: If a shape does not fit, there is no point, or a point lies outside the image.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if hasattr(kernels, 'detach'):
        kernels = kernels.detach().float().cpu().numpy()
    kernels = np.asarray(kernels)
    height, width = image.shape[:2]
    side = round(kernels.shape[0] ** 0.5) if kernels.ndim == 3 else 0
    if side * side != kernels.shape[0] or side % 2 == 0:
        raise ValueError(f'kernels must be (K*K, H, W) with an odd K, got {tuple(kernels.shape)}')
    if not points:
        raise ValueError('points must name at least one position (y, x)')
    for y, x in points:
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f'the point {(y, x)} lies outside the image of {height} x {width} pixels')
    for name, labels in dict(truth=truth, prediction=prediction).items():
        if labels is not None and labels.shape != (height, width):
            raise ValueError(f'{name} must be {(height, width)} like the image, got {labels.shape}')
    if palette is None:
        palette = np.array(colormaps['tab20'].colors) * 255
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)[:256]

    upper = [('image', image)]
    upper += [
        (name, colours[labels]) for name, labels in (('truth', truth), ('prediction', prediction)) if labels is not None
    ]
    figure = Figure(figsize=(2.6 * max(len(upper), len(points)), 6), layout='constrained')
    rows = figure.subfigures(2, 1)
    marks = [f'C{n % 10}' for n in range(len(points))]

    for axes, (title, picture) in zip(rows[0].subplots(1, len(upper), squeeze=False)[0], upper, strict=True):
        axes.imshow(picture, interpolation='nearest')
        axes.set_title(title)
        axes.set_axis_off()
        for mark, (y, x) in zip(marks, points, strict=True):
            axes.plot(x, y, 'o', markersize=9, markerfacecolor='none', markeredgecolor='white', markeredgewidth=3)
            axes.plot(x, y, 'o', markersize=9, markerfacecolor='none', markeredgecolor=mark, markeredgewidth=1.5)

    rows[1].suptitle('affiliation kernels: share of each low-resolution position in the marked point (%)')
    covered, feature_covered = extents or (image.shape[:2], image.shape[:2])
    cell_y, cell_x = (pixels / cells for pixels, cells in zip(feature_covered, feature_size, strict=True))
    for axes, mark, (y, x) in zip(rows[1].subplots(1, len(points), squeeze=False)[0], marks, points, strict=True):
        # Pixel -> position of the kernel map -> centre of its window, by the rule of the operator.
        row = min(y * kernels.shape[1] // covered[0], kernels.shape[1] - 1)
        column = min(x * kernels.shape[2] // covered[1], kernels.shape[2] - 1)
        kernel = kernels[:, row, column].reshape(side, side)
        centre = row * feature_size[0] // kernels.shape[1], column * feature_size[1] // kernels.shape[2]
        top, left = centre[0] - side // 2, centre[1] - side // 2
        axes.imshow(image, interpolation='nearest', extent=(0, width, height, 0))
        strongest = max(float(kernel.max()), 1e-12)
        for i in range(side):
            for j in range(side):
                corner = ((left + j) * cell_x, (top + i) * cell_y)
                if not (0 <= top + i < feature_size[0] and 0 <= left + j < feature_size[1]):
                    axes.add_patch(Rectangle(corner, cell_x, cell_y, fill=False, hatch='///', edgecolor='0.7'))
                    continue
                share = float(kernel[i, j])
                colour = colormaps['inferno'](share / strongest)
                axes.add_patch(
                    Rectangle(corner, cell_x, cell_y, facecolor=(*colour[:3], 0.55), edgecolor='white', linewidth=0.5)
                )
                axes.text(
                    corner[0] + cell_x / 2,
                    corner[1] + cell_y / 2,
                    f'{100 * share:.0f}',
                    fontsize=7,
                    ha='center',
                    va='center',
                    color='white' if share < 0.6 * strongest else 'black',
                )
        axes.plot(x + 0.5, y + 0.5, 'x', color=mark, markersize=9, markeredgewidth=2.5)
        axes.set_xlim(left * cell_x, (left + side) * cell_x)
        axes.set_ylim((top + side) * cell_y, top * cell_y)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=mark, linewidth=2.5)
    return figure
