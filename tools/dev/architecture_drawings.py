#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write docs/drawings: where the upsampler sits in each architecture, as small SVG files.

A drawing has the encoder on the left, coarse above fine, and the decoder on the right. Orange boxes are upsamplers; a
solid arrow into it is the feature, a dashed one the guide. Text is large, so that it can be read on a phone.
"""

import argparse
import sys
from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).parents[2] / 'docs' / 'drawings'
INK, GREY, BLUE, ORANGE = '#222222', '#666666', '#dbe9f6', '#ffd59e'
WIDTH = 520


class Drawing:
    """Shapes of one drawing."""

    def __init__(self, title, height):
        self.title, self.height, self.shapes = title, height, []

    def box(self, x, y, text, width=110, colour=BLUE, height=36):
        """A box with its centre at ``x, y``."""
        self.shapes.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height}" rx="6" '
            f'fill="{colour}" stroke="{INK}"/>'
        )
        self.text(x, y + 5, text)

    def text(self, x, y, text, colour=INK, size=16, anchor='middle'):
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, *points, guide=False):
        """A line through points with a head at its end."""
        path = 'M' + ' L'.join(f'{x:g} {y:g}' for x, y in points)
        dashes = ' stroke-dasharray="6 4"' if guide else ''
        self.shapes.append(
            f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.6"{dashes} marker-end="url(#head)"/>'
        )

    def plus(self, x, y, text='+'):
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="14" fill="white" stroke="{INK}"/>')
        self.text(x, y + 6, text, size=18)

    def svg(self):
        return '\n'.join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
                f'font-family="sans-serif" role="img">',
                f'<title>{escape(self.title)}</title>',
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
                f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
                f'<rect width="{WIDTH}" height="{self.height}" rx="8" fill="white"/>',
                *self.shapes,
                '</svg>',
                '',
            ]
        )


def pyramid(title, strides, lateral, outputs, together=1, join='+', top=None):
    """A top-down path: at each level the upsampled coarser map meets what comes from the encoder, its guide.

    Args:
        strides: Of the levels, coarsest first.
        lateral: What lies between encoder and path.
        outputs: Text right of each level.
        together: How many of the coarsest levels one box takes together. Default: 1.
        join: Sign at the meeting, ``'+'`` or ``'c'`` for concatenation.
        top: Text of the box on top of the path. Default: the first output.
    """
    gap, first = 108, 84
    drawing = Drawing(title, first + gap * (len(strides) - 1) + 44)
    drawing.text(75, 30, 'encoder', GREY)
    drawing.text(320, 30, 'decoder', GREY)
    ys = [first + gap * i for i in range(len(strides))]
    drawing.box(320, (ys[0] + ys[together - 1]) / 2, top or outputs[0], height=36 + ys[together - 1] - ys[0])
    for i, (y, stride) in enumerate(zip(ys, strides)):
        drawing.box(75, y, f'stride {stride}')
        if i:
            drawing.arrow((75, y - 18), (75, ys[i - 1] + 20))  # the encoder runs from fine to coarse
        start = 130
        if lateral:
            drawing.box(180, y, lateral, width=56, colour='white', height=30)
            drawing.arrow((start, y), (150, y))
            start = 208
        if i < together:
            drawing.arrow((start, y), (263, y))
        else:
            drawing.plus(320, y, join)
            drawing.arrow((start, y), (304, y))
            middle = (y + ys[i - 1]) / 2
            drawing.box(320, middle, 'upsampler', colour=ORANGE, width=104, height=32)
            drawing.arrow((320, ys[i - 1] + (18 if i == together else 14)), (320, middle - 18))
            drawing.arrow((320, middle + 16), (320, y - 16))
            drawing.arrow((start + 22, y), (start + 22, middle), (266, middle), guide=True)
        if outputs[i] and (i >= together or top):
            drawing.arrow((376 if i < together else 335, y), (408, y))
            drawing.text(414, y + 5, outputs[i], anchor='start')
    return drawing


def segformer():
    """Every level climbs to the finest, a step at a time, guided by the levels that it meets."""
    drawing = Drawing('SegFormer head', 416)
    xs, ys = (60, 180, 300, 420), (84, 176, 258, 340)
    drawing.text(260, 30, 'projected stages, the guides', GREY)
    for x, stride in zip(xs, (32, 16, 8, 4)):
        drawing.box(x, 66, f'stride {stride}', width=96)
    for i, y in enumerate(ys[1:]):
        gap = xs[i] + 60  # between two columns
        drawing.arrow((xs[i], 84), (xs[i], 112), (gap, 112), (gap, y), (gap + 8, y))
        for x in xs[i + 1 :]:
            drawing.box(x, y, 'upsampler', colour=ORANGE, width=100, height=32)
            if x != xs[-1]:
                drawing.arrow((x + 50, y), (x + 68, y))
    for x in xs[1:]:  # the guide of a column
        bottom = ys[1 + min(xs.index(x) - 1, 2)]
        for y in ys[1:]:
            if y <= bottom:
                drawing.arrow((x - 30, 84 if y == ys[1] else y - 66), (x - 30, y - 18), guide=True)
    for y in ys[1:]:
        drawing.arrow((470, y), (498, y), (498, 372))
    drawing.arrow((468, 66), (498, 66), (498, 372))
    drawing.text(510, 396, 'all four: concatenate, fuse, classify', GREY, anchor='end')
    return drawing


def drawings():
    """Every drawing by the name of its file."""
    levels = (32, 16, 8, 4)
    return {
        'fpn': pyramid('FPN of a detector', levels, '1x1', ('P5', 'P4', 'P3', 'P2')),
        'segformer': segformer(),
        'upernet': pyramid('UPerNet head', levels, '1x1', ('to fusion',) * 4, top='pooling'),
        'maskformer': pyramid('MaskFormer', levels, '1x1', ('', '3x3', '3x3', 'mask feature'), top='encoder'),
        'mask2former': pyramid(
            'Mask2Former', levels, '1x1', ('',) * 3 + ('mask feature',), together=3, top='attention'
        ),
        'unet': pyramid('U-Net', (16, 8, 4, 2, 1), None, ('bottom', 'convs', 'convs', 'convs', 'convs'), join='c'),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare instead of writing')
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings().items():
        path = OUT / f'{name}.svg'
        if not args.check:
            path.write_text(drawing.svg())
        elif not path.exists() or path.read_text() != drawing.svg():
            sys.exit(f'{path.name} is not what this tool draws: run python tools/dev/architecture_drawings.py')


if __name__ == '__main__':
    main()
