#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/kernels.png, the first picture of the README: kernels of two points on both sides of a boundary.

Bilinear interpolation beside CARAFE and SAPA-G of trained demo models, at the step from stride 8 to 4:

    python tools/make_demo_dataset.py
    python tools/train.py configs/demo/segformer_mit-b0_sapa-g_demo.py --work-dir work_dirs/sapa-g
    python tools/train.py configs/demo/segformer_mit-b0_demo.py --work-dir work_dirs/carafe \\
      --cfg-options model.decode_head.upsample_cfg.type=sapa_mm.CARAFE
    python tools/dev/readme_picture.py work_dirs/sapa-g work_dirs/carafe
"""

import argparse
from io import BytesIO
from pathlib import Path

import cv2
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmseg.apis import inference_model, init_model
from PIL import Image

from sapa_mm.visualization import bilinear_kernels, record_upsamplers

OUT = Path(__file__).parents[2] / 'docs' / 'kernels.png'
PICTURE = 'data/demo/images/validation/demo_valid_0003.png'
POINTS = {'just inside the disc': (30, 106), 'just outside': (26, 102)}  # (y, x) in pixels
SIDE = 5
COLOURS = ('#1f77b4', '#d62728')


def last_stage(work_dir):
    """The finest upsampler of a demo model, as it works on the picture."""
    (config,) = work_dir.glob('*.py')
    (checkpoint,) = work_dir.glob('iter_*.pth')
    model = init_model(str(config), str(checkpoint), device='cpu')
    with record_upsamplers(model) as recording:
        inference_model(model, PICTURE)
    return recording.stages[-1]


def draw_window(axes, image, kernels, size, point, colour):
    """The window of a point over the picture, with the share of each cell in percent."""
    height, width = image.shape[:2]
    cell = height // size[0]
    y, x = point
    kernel = kernels[:, y * kernels.shape[1] // height, x * kernels.shape[2] // width].view(SIDE, SIDE)
    top, left = y // cell - SIDE // 2, x // cell - SIDE // 2
    axes.imshow(image, extent=(0, width, height, 0), interpolation='nearest')
    for i in range(SIDE):
        for j in range(SIDE):
            share = float(kernel[i, j])
            red, green, blue, _ = colormaps['inferno'](min(share / 0.3, 1.0))
            corner = ((left + j) * cell, (top + i) * cell)
            axes.add_patch(
                Rectangle(corner, cell, cell, facecolor=(red, green, blue, 0.6), edgecolor='white', linewidth=0.5)
            )
            axes.text(
                corner[0] + cell / 2,
                corner[1] + cell / 2,
                f'{100 * share:.0f}',
                ha='center',
                va='center',
                fontsize=9,
                color='black' if share > 0.2 else 'white',
            )
    axes.plot(x + 0.5, y + 0.5, 'x', color=colour, markersize=10, markeredgewidth=3)
    axes.set(xlim=(left * cell, (left + SIDE) * cell), ylim=((top + SIDE) * cell, top * cell), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3)


def draw(image, kernels, size):
    figure = Figure(figsize=(10, 4.9), layout='constrained')
    whole, windows = figure.subfigures(1, 2, width_ratios=(0.34, 0.66))
    axes = whole.subplots()
    axes.imshow(image, interpolation='nearest')
    axes.set_title('a boundary', fontsize=13)
    axes.set_axis_off()
    rows = windows.subplots(len(POINTS), len(kernels))
    for row, colour, (name, point) in zip(rows, COLOURS, POINTS.items()):
        axes.plot(*point[::-1], 'o', markersize=9, markerfacecolor='none', markeredgecolor='white', markeredgewidth=4)
        axes.plot(*point[::-1], 'o', markersize=9, markerfacecolor='none', markeredgecolor=colour, markeredgewidth=2)
        row[0].set_ylabel(name, fontsize=12, color=colour)
        for panel, weights in zip(row, kernels.values()):
            draw_window(panel, image, weights, size, point, colour)
    for panel, name in zip(rows[0], kernels):
        panel.set_title(name, fontsize=13)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sapa', type=Path, help='work dir of the demo model with SAPA-G')
    parser.add_argument('carafe', type=Path, help='work dir of the demo model with CARAFE')
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args()
    sapa, carafe = last_stage(args.sapa), last_stage(args.carafe)
    size, full = sapa.feature.shape[1:], sapa.result.shape[1:]
    kernels = {'bilinear': bilinear_kernels(size, full, SIDE), 'CARAFE': carafe.kernels, 'SAPA': sapa.kernels}
    buffer = BytesIO()
    draw(cv2.imread(PICTURE)[..., ::-1], kernels, size).savefig(buffer, dpi=100)
    Image.open(buffer).convert('RGB').quantize(256).save(args.out, optimize=True)


if __name__ == '__main__':
    main()
