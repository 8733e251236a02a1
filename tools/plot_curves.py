#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw loss and validation metrics of one training or several, over their interruptions and resumptions.

One run has the loss and its metrics in one plot. Several runs have a plot for each metric, and a line for each run.
"""

import argparse
import json
import os.path as osp
from pathlib import Path

from _common import fail

#: Ends of the names of metrics that are drawn unless --metrics names others.
USUAL = ('mIoU', 'mAP', 'AP50', 'bbox_mAP_50', 'PQ', 'd1', 'SAD')
COLUMNS = 3


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='work_dir', help='folder that a training wrote; one or several')
    parser.add_argument('out', type=Path, help='picture to write, .png, .svg or .pdf')
    parser.add_argument('--labels', nargs='+', help='names of the runs (default: those of their folders)')
    parser.add_argument(
        '--metrics', nargs='*', help=f'what to draw (default: the loss, and what ends in {", ".join(USUAL)})'
    )
    return parser.parse_args()


def read(work_dir):
    """Iteration -> scalars, of training and of validation; what a resumed run did again counts, not what it repeats."""
    if not osp.isdir(work_dir):
        fail(f'there is no folder {work_dir}')
    training, validation = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for entry in filter(None, map(parse, path.read_text().splitlines())):
            (training if 'loss' in entry else validation)[entry['step']] = entry
    if not training:
        fail(f'{work_dir} has no */vis_data/scalars.json with a loss: is it the work_dir of a training?')
    return training, at_iterations(training, validation)


def parse(line):
    """A line of the log, or None for the half line that a killed run leaves."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def at_iterations(training, validation):
    """Validation by iteration: a run that counts epochs logs it by epoch, and its losses by iteration."""
    ends = {}
    for step, entry in training.items():
        if 'epoch' in entry:
            ends[entry['epoch']] = max(step, ends.get(entry['epoch'], 0))
    if not ends or max(validation, default=0) > max(ends):
        return validation
    return {ends[epoch]: entry for epoch, entry in validation.items() if epoch in ends}


def labels_of(work_dirs):
    """The folders' names; where two are equal, as much of the paths as tells them apart."""
    paths = [osp.abspath(folder) for folder in work_dirs]
    names = [osp.basename(path) for path in paths]
    if len(set(names)) == len(names) or len(set(paths)) < len(paths):
        return names
    return [osp.relpath(path, osp.commonpath(paths)) for path in paths]


def names_in(*logs):
    """What is logged, but for counters and clocks."""
    names = {name for log in logs for entry in log.values() for name in entry}
    return sorted(names - {'step', 'iter', 'epoch', 'time', 'data_time', 'memory'})


def curve(name, training, validation):
    """Iterations and values of a metric of validation, or else of training."""
    for log in (validation, training):
        points = [(step, log[step][name]) for step in sorted(log) if name in log[step]]
        if points:
            return tuple(zip(*points))
    return (), ()


def plot_one(pyplot, training, validation, metrics):
    """The loss, and metrics of validation on an axis of their own."""
    figure, axis = pyplot.subplots(figsize=(7, 3.5), layout='constrained')
    axis.plot(*curve('loss', training, {}), color='tab:blue', label='loss (training)')
    axis.set(xlabel='iteration', ylabel='loss', ylim=(0, None))
    metrics = [name for name in metrics if name != 'loss']
    if metrics:
        other = axis.twinx()
        for number, name in enumerate(metrics):
            kind = 'validation' if name in names_in(validation) else 'training'
            marker = 'os^dv*'[number % 6] if kind == 'validation' else ''
            other.plot(*curve(name, training, validation), marker=marker, color='tab:red', label=f'{name} ({kind})')
        other.set(ylabel=', '.join(metrics), ylim=(0, None))
        other.margins(y=0.15)
        other.legend(loc='lower right', fontsize=8)
    axis.legend(loc='upper right', fontsize=8)
    return figure


def plot_several(pyplot, runs, metrics):
    """A plot for each metric, a line for each run that logs it; a run has one colour everywhere."""
    columns = min(len(metrics), COLUMNS)
    rows = -(-len(metrics) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.5 * rows), layout='constrained', squeeze=False
    )
    for axis, name in zip(grid.flat, metrics):
        for number, (label, logs) in enumerate(runs.items()):
            steps, values = curve(name, *logs)
            if steps:
                marker = 'o' if name in names_in(logs[1]) else ''
                axis.plot(steps, values, marker=marker, markersize=4, color=f'C{number % 10}', label=label)
        axis.set(xlabel='iteration', title=name)
        axis.legend(fontsize=8)
    for axis in grid.flat[len(metrics) :]:
        axis.set_axis_off()
    return figure


def main():
    args = parse_args()
    if args.out.is_dir():
        fail(f'the last argument is the picture to write, and {args.out} is a folder')
    labels = args.labels or labels_of(args.work_dirs)
    if len(labels) != len(args.work_dirs) or len(set(labels)) < len(labels):
        fail(f'each run needs a label of its own: {len(args.work_dirs)} runs, labels {", ".join(labels)}')
    runs = {label: read(folder) for label, folder in zip(labels, args.work_dirs)}
    names = names_in(*(log for logs in runs.values() for log in logs))
    for name in args.metrics or ():
        if name not in names:
            fail(f'no metric of the name {name!r} is logged; there are {", ".join(names)}')
    logged = names_in(*(validation for _, validation in runs.values()))
    metrics = args.metrics or ['loss', *(name for name in logged if name.endswith(USUAL))]
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    if len(runs) == 1:
        figure = plot_one(pyplot, *next(iter(runs.values())), metrics)
    else:
        figure = plot_several(pyplot, runs, metrics)
    try:
        figure.savefig(args.out, dpi=110)
    except (OSError, ValueError) as error:  # no such folder; a format that matplotlib does not write
        fail(f'{args.out} cannot be written: {error}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
