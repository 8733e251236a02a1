#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw loss and validation metrics of a training, over its interruptions and resumptions."""

import argparse
import json
import sys
from pathlib import Path


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='folder that the training wrote')
    parser.add_argument('out', type=Path, help='picture to write, .png or .svg')
    parser.add_argument(
        '--metrics', nargs='*', help='validation metrics to draw (default: those named mIoU, AP50, PQ ...)'
    )
    return parser.parse_args()


def read(work_dir):
    """Iteration -> scalars, of training and of validation; what a resumed run did again counts, not what it repeats."""
    training, validation = {}, {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for entry in map(json.loads, path.read_text().splitlines()):
            (training if 'loss' in entry else validation)[entry['step']] = entry
    return training, validation


def main():
    args = parse_args()
    training, validation = read(args.work_dir)
    if not training:
        sys.exit(f'{args.work_dir} has no */vis_data/scalars.json with a loss: is it the work_dir of a training?')
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.5), layout='constrained')
    steps = sorted(training)
    axis.plot(steps, [training[step]['loss'] for step in steps], color='tab:blue', label='loss (training)')
    axis.set(xlabel='iteration', ylabel='loss', ylim=(0, None))
    names = args.metrics or sorted(
        {
            name
            for entry in validation.values()
            for name in entry
            if name.endswith(('mIoU', 'mAP', 'AP50', 'bbox_mAP_50'))
        }
    )
    if names:
        other = axis.twinx()
        for name, marker in zip(names, 'os^dv*'):
            points = [(step, validation[step][name]) for step in sorted(validation) if name in validation[step]]
            other.plot(*zip(*points), marker=marker, color='tab:red', label=f'{name} (validation)')
        other.set(ylabel=', '.join(names), ylim=(0, None))
        other.margins(y=0.15)
        other.legend(loc='lower right', fontsize=8)
    axis.legend(loc='upper right', fontsize=8)
    figure.savefig(args.out, dpi=110)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
