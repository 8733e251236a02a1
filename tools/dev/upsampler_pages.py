#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write docs/upsamplers: a page for every registered upsampler from its docstring, and a picture of what it learned.

The pages are made from the docstrings alone; tests/test_upsampler_pages.py compares them. The pictures come from
training each upsampler for a minute on generated pictures, and are drawn only with --pictures.
"""

import argparse
import inspect
import re
import sys
import textwrap
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sapa_mm.upsamplers import UPSAMPLERS

sys.path.insert(0, str(Path(__file__).parents[1]))  # for make_demo_dataset

OUT = Path(__file__).parents[2] / 'docs' / 'upsamplers'
SECTIONS = ('Args', 'Raises', 'Cost', 'Source')
CHANNELS = 32
STEPS = 300
# A sample of tools/make_demo_dataset.py, and places (y, x) in it: inside the disc, at its edge, beside it, on a stripe.
SAMPLE = (0, 1, 3)
POINTS = ((50, 108), (50, 85), (50, 79), (41, 36))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='name', help=f'of {", ".join(UPSAMPLERS)} (default: all)')
    parser.add_argument('--pictures', action='store_true', help='train and draw as well, about a minute each')
    args = parser.parse_args()
    for name in args.names:
        if name not in UPSAMPLERS:
            parser.error(f'no upsampler {name!r}; there are {", ".join(UPSAMPLERS)}')
    return args


# ---- pages


def sections(docstring):
    """Split a docstring into its first line, its description and its named sections."""
    title, _, rest = inspect.cleandoc(docstring).partition('\n')
    parts = re.split(rf'^({"|".join(SECTIONS)}):[ \n]', rest, flags=re.MULTILINE)
    named = {name: textwrap.dedent(text).strip('\n') for name, text in zip(parts[1::2], parts[2::2])}
    return title, parts[0].strip('\n'), named


def table(lines):
    """Turn a simple table of reStructuredText into one of Markdown."""
    starts = [match.start() for match in re.finditer('=+', lines[0])]
    columns = list(zip(starts, [*starts[1:], None]))
    rows = [[line[a:b].strip() for a, b in columns] for line in lines if not line.startswith('=')]
    rows.insert(1, ['---'] * len(columns))
    return [f'| {" | ".join(row)} |' for row in rows]


def markdown(text):
    """Turn the parts of reStructuredText that the docstrings use into Markdown: literal blocks, tables, roles."""
    out = []
    for block in re.split(r'\n\n(?=\S)', text):
        lines = block.split('\n')
        if lines[0].startswith('==='):
            lines = table(lines)
        paragraph, literal, rest = block.partition('::\n\n')
        if literal:
            lines = [f'{paragraph}:', '', '```', *textwrap.dedent(rest).strip('\n').split('\n'), '```']
        out.append('\n'.join(lines))
    return without_roles('\n\n'.join(out))


def without_roles(text):
    return re.sub(r':\w+:`([^`]+)`', r'`\1`', text)


def options(text):
    """Turn the entries of a section with names into a list."""
    entries = re.split(r'\n(?=\S)', without_roles(text))
    return '\n'.join(
        re.sub(r'^(\w+)( \(.*?\))?:', r'- `\1`\2:', re.sub(r'\n\s+', ' ', entry), count=1) for entry in entries
    )


def page(name):
    """The page of an upsampler.

    Args:
        name (str): Class name.

    Returns:
        str: Markdown.
    """
    kind = UPSAMPLERS[name]
    title, description, named = sections(kind.__doc__)
    head = [f'# {name}', title, markdown(description)]
    head += [
        f"In a config: `upsample_cfg=dict(type='sapa_mm.{name}')`. "
        + ('It uses the values of the guide.' if kind.needs_guide else 'Of the guide it uses the size only.')
    ]
    head += [f'![{name}]({name}.png)', caption(name)]
    if 'Cost' in named:
        head += ['## Cost', markdown(named['Cost'])]
    head += ['## Options', options(named['Args'])]
    if 'Raises' in named:
        head += ['It raises', options(named['Raises'])]
    source = f'Definition: {named["Source"]}\n\n' if 'Source' in named else ''
    head += ['## Source and licence', source + LICENCE]
    return '\n\n'.join([*head, '<!-- written by tools/dev/upsampler_pages.py from the docstring -->']) + '\n'


LICENCE = (
    'This implementation was written from the definition and contains no code of its authors; it is under the Apache '
    'License 2.0 like the rest of the package. State dicts of published checkpoints load; what may be done with a '
    'checkpoint is for its own licence to say.'
)


def caption(name):
    kind = UPSAMPLERS[name]
    what = {
        'kernels': 'the share of each position of the feature in the marked place, in percent',
        'positions': 'where the feature is sampled for the marked place; larger dots have larger weights, and colours '
        'tell the groups of channels apart',
        'response': 'how much each position of the feature counts in the marked place, in percent: the derivative of '
        'the result by the feature, the mean over all channels',
    }[drawn(kind)]
    return (
        f'Above, a generated picture with marked places; below, {what}. The upsampler was trained for {STEPS} steps to '
        'bring noisy class maps of a quarter of the size to half the size, with default options.'
    )


def drawn(kind):
    """What shows how an upsampler works: its kernels, the positions it samples, or the response of its result."""
    if hasattr(kind, 'positions'):
        return 'positions'
    return 'kernels' if hasattr(kind, 'kernels') else 'response'


def index():
    """The table of all pages."""
    rows = ['| type | | guide | parameters |', '|---|---|---|---|']
    for name, kind in UPSAMPLERS.items():
        title = sections(kind.__doc__)[0].rstrip('.').replace('``', '`')
        count = sum(p.numel() for p in kind(256).parameters())
        guide = 'values' if kind.needs_guide else 'size'
        rows.append(f'| [`sapa_mm.{name}`]({name}.md) | {title} | {guide} | {count:,} |')
    return '\n'.join(
        [
            '# Upsamplers',
            '',
            'All of them are modules with `forward(feature, guide)` that give the feature the size of the guide, which',
            'may be any, and stand behind the `upsample_cfg` of every neck and head. Parameters: default options, 256',
            'channels.',
            '',
            *rows,
            '',
            'How to add one: [A new upsampler](../new_upsampler.md).',
            '',
            '<!-- written by tools/dev/upsampler_pages.py from the docstrings -->',
            '',
        ]
    )


# ---- pictures


class Task(nn.Module):
    """Class maps of a quarter of the picture's size to half of it, with the picture as guide.

    The class maps are noisy: without noise the nearest position says nearly all, and some upsamplers learn only that.
    """

    def __init__(self, kind, classes):
        super().__init__()
        self.guide = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1),
        )  # fmt: skip
        self.feature = nn.Conv2d(classes, CHANNELS, 1)
        self.upsampler = kind(CHANNELS)
        self.classify = nn.Conv2d(CHANNELS, classes, 1)

    def maps(self, images, shares):
        return self.feature(shares + 0.5 * torch.randn_like(shares)), self.guide(images)

    def forward(self, images, shares):
        return self.classify(self.upsampler(*self.maps(images, shares)))


def samples(seeds):
    """Pictures in [-1, 1], the class shares of 4x4 blocks, and the labels of 2x2 blocks, as tensors."""
    import numpy as np
    from make_demo_dataset import CLASSES, make_sample

    made = [make_sample(np.random.default_rng(seed))[:2] for seed in seeds]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in made]) / 127.5 - 1
    labels = torch.stack([torch.from_numpy(labels) for _, labels in made]).long()
    shares = F.one_hot(labels, len(CLASSES)).movedim(3, 1).float()
    return images, F.avg_pool2d(shares, 4), F.avg_pool2d(shares, 2).argmax(1)


def train(kind):
    from make_demo_dataset import CLASSES
    from rich.progress import track

    torch.manual_seed(0)
    images, shares, labels = samples([(0, 0, n) for n in range(64)])
    task = Task(kind, len(CLASSES))
    optimizer = torch.optim.Adam(task.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for _ in track(range(STEPS), kind.__name__):
        batch = torch.randint(len(images), (4,))
        # a quarter of each picture, at a multiple of the four pixels of a position of the feature
        top, left = (4 * int(n) for n in torch.randint(17, (2,)))

        def crop(x, stride, batch=batch, top=top, left=left):
            return x[batch, ..., top // stride : (top + 64) // stride, left // stride : (left + 64) // stride]

        loss = F.cross_entropy(task(crop(images, 1), crop(shares, 4)), crop(labels, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return task.eval()


def response(upsampler, feature, guide, side=5):
    """Kernels ``(side * side, H, W)`` of a linear upsampler at :data:`POINTS`, and zeros elsewhere."""
    height, width = guide.shape[2:]
    h, w = feature.shape[2:]
    kernels = torch.zeros(side**2, height, width)
    for i, j in ((y // 2, x // 2) for y, x in POINTS):
        total = torch.zeros(h, w)
        for channel in range(CHANNELS):
            x = feature.detach().requires_grad_()
            (grad,) = torch.autograd.grad(upsampler(x, guide)[0, channel, i, j], x)
            total += grad[0, channel] / CHANNELS
        padded = F.pad(total, (side // 2,) * 4)
        row, column = i * h // height, j * w // width
        kernels[:, i, j] = padded[row : row + side, column : column + side].flatten()
    return kernels


def draw_positions(image, positions, weights, feature_size):
    """Draw the samples of each of :data:`POINTS`.

    Args:
        image: ``(H, W, 3)`` uint8.
        positions: ``(G, P, 2, H_up, W_up)``, ``x`` and ``y`` in positions of the feature.
        weights: ``(G, P, H_up, W_up)``.
        feature_size: Height and width of the feature.
    """
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    ratio = height / feature_size[0]
    figure = Figure(figsize=(2.6 * len(POINTS), 6), layout='constrained')
    rows = figure.subfigures(2, 1)
    whole = rows[0].subplots()
    whole.imshow(image)
    whole.set_title('image')
    whole.set_axis_off()
    for n, (axis, (y, x)) in enumerate(zip(rows[1].subplots(1, len(POINTS)), POINTS)):
        whole.plot(x, y, 'o', markersize=9, markerfacecolor='none', markeredgecolor='white', markeredgewidth=3)
        whole.plot(x, y, 'o', markersize=9, markerfacecolor='none', markeredgecolor=f'C{n}', markeredgewidth=1.5)
        axis.imshow(image, extent=(0, width, height, 0))
        i, j = y * positions.shape[3] // height, x * positions.shape[4] // width
        for group in range(len(positions)):
            places = (positions[group, :, :, i, j] + 0.5) * ratio
            area = 60 * (weights[group, :, i, j] / weights[:, :, i, j].max()).clamp(min=0.05)
            colour = ('red', 'cyan', 'yellow', 'blue')[group % 4]
            axis.scatter(*places.T, s=area, color=colour, edgecolors='white', linewidths=0.8)
        axis.plot(x + 0.5, y + 0.5, 'x', color=f'C{n}', markersize=9, markeredgewidth=2.5)
        reach = 2.5 * ratio  # a window of 5 x 5
        axis.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach), xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color=f'C{n}', linewidth=2.5)
    return figure


def draw(name):
    """Train an upsampler and draw what it does."""
    from sapa_mm.visualization import draw_affiliation

    kind = UPSAMPLERS[name]
    task = train(kind)
    torch.manual_seed(1)  # whatever an upsampler drew in training, all meet the same noise here
    images, shares, _ = samples([SAMPLE])
    image = ((images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    with torch.no_grad():
        feature, guide = task.maps(images, shares)
    size = tuple(feature.shape[2:])
    what = drawn(kind)
    if what == 'response':
        return draw_affiliation(image, response(task.upsampler, feature, guide), POINTS, size)
    arguments = (feature, guide)[: len(inspect.signature(kind.kernels).parameters) - 1] if what == 'kernels' else ()
    with torch.no_grad():
        if what == 'kernels':
            return draw_affiliation(image, task.upsampler.kernels(*arguments)[0], POINTS, size)
        positions = task.upsampler.positions(feature, guide)[0]
        if hasattr(kind, 'kernels'):
            weights = task.upsampler.kernels(feature, guide)[0]
        else:  # one sample for each group
            positions = positions[:, None]
            weights = torch.ones_like(positions[:, :, 0])
    return draw_positions(image, positions, weights, size)


def main():
    args = parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in args.names or UPSAMPLERS:
        (OUT / f'{name}.md').write_text(page(name))
        if args.pictures:
            # few colours: a third of the bytes
            from io import BytesIO

            from PIL import Image

            buffer = BytesIO()
            draw(name).savefig(buffer, dpi=70)
            Image.open(buffer).convert('RGB').quantize(256).save(OUT / f'{name}.png', optimize=True)
    (OUT / 'README.md').write_text(index())


if __name__ == '__main__':
    main()
