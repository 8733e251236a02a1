#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Put the studies known_signals_*.py side by side: errors, and what the kernels do, as tables and two plots.

Reads runs/*.json of each study's folder in STUDIES, as tools/compare.py writes them; writes known_signals.md,
known_signals_errors.png and known_signals_entropy.png there.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from compare import by_seed, difference, half_width, markdown, read_study, runs, summary

SETTINGS = {
    f'{data}_x{ratio}': f'{title}, 1/{ratio}'
    for data, title in (('camvid', 'CamVid'), ('dsb2018', 'DSB2018'))
    for ratio in (4, 8)
}
KINDS = dict(square='squared error of the scores times 100 (what is trained)', error='wrong labels, %')
REGIONS = ('1px', '2px', '3px', '5px', 'inside')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', type=Path, help='folder of the study files and of their results')
    return parser.parse_args()


def read(folder: Path) -> dict:
    """Setting -> (study, results), of the settings that have a finished run."""
    found = {}
    for setting in SETTINGS:
        study = read_study(folder / f'known_signals_{setting}.py')
        paths = [folder / f'known_signals_{setting}' / 'runs' / f'{run.replace("/", "_")}.json' for run in runs(study)]
        results = [json.loads(path.read_text()) for path in paths if path.exists()]
        if results:
            found[setting] = study, results
    return found


def error_table(study, results, kind: str) -> str:
    """``kind`` of error by region, differences to bilinear interpolation at 1 and 3 pixels and inside."""
    header = ['upsampler', 'seeds', *REGIONS, '1px minus bilinear', '3px minus bilinear', 'inside minus bilinear']
    rows = []
    for name in study.upsamplers:
        values = {region: by_seed(results, name, 'last', f'{kind}.{region}') for region in REGIONS}
        if not values['3px']:
            continue
        row = [name, str(len(values['3px']))]
        row += [summary(list(values[region].values())) for region in REGIONS]
        for region in ('1px', '3px', 'inside'):
            baseline = by_seed(results, study.baseline, 'last', f'{kind}.{region}')
            row.append('' if name == study.baseline else difference(values[region], baseline))
        rows.append(row)
    return markdown(header, rows)


def picture_table(study, results) -> str:
    """Differences at 3 pixels picture by picture, each the mean over seeds: how sure beyond these pictures?"""
    rows = []
    for name in study.upsamplers:
        if name == study.baseline:
            continue
        pairs = {}  # picture -> differences by seed
        mine, base = (
            {result['seed']: result['tests']['last'] for result in results if result['upsampler'] == kind}
            for kind in (name, study.baseline)
        )
        for seed in mine.keys() & base.keys():
            for key, value in mine[seed].items():
                if key.startswith('picture/'):
                    pairs.setdefault(key, []).append(value - base[seed][key])
        means = [statistics.fmean(values) for values in pairs.values()]
        if len(means) > 1:
            mean, half = statistics.fmean(means), half_width(means)
            better = sum(value < 0 for value in means)
            rows.append([name, f'{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]', f'{better} of {len(means)}'])
    return markdown(['upsampler', '3px minus bilinear, mean over pictures', 'pictures that got better'], rows)


def kernel_table(found) -> str:
    """Entropy of smooth and of detail windows, and the share of a point's own label."""
    header = [
        'setting',
        'upsampler',
        'smooth: mean',
        '5 % to 95 %',
        'detail: mean',
        '5 % to 95 %',
        'smooth above detail',
    ]
    header += ['own label, kernel', 'own label, average']
    rows = []
    for setting, (study, results) in found.items():
        for name in study.upsamplers:
            tests = [result['tests']['last'] for result in results if result['upsampler'] == name]
            if not tests or 'entropy smooth.mean' not in tests[0]:
                continue
            row = [SETTINGS[setting], name]
            for kind in ('smooth', 'detail'):
                low, mean, high = (
                    statistics.fmean(test[f'entropy {kind}.{key}'] for test in tests) for key in ('05', 'mean', '95')
                )
                row += [f'{mean:.3f}', f'{low:.3f} to {high:.3f}']
            row.append(summary([100 * test['entropy order.smooth above detail'] for test in tests]))
            for key in ('own label.kernel', 'own label.average'):
                row.append(summary([test[key] for test in tests if key in test]))
            rows.append(row)
    return markdown(header, rows)


def draw_errors(found):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(found)), layout='constrained')
    axes = figure.subplots(len(found), 2, squeeze=False)
    for row, (setting, (study, results)) in zip(axes, found.items()):
        for ax, (kind, what) in zip(row, KINDS.items()):
            for number, name in enumerate(study.upsamplers):
                means = []
                for region in REGIONS[:-1]:
                    values = list(by_seed(results, name, 'last', f'{kind}.{region}').values())
                    means.append(statistics.fmean(values) if values else float('nan'))
                if by_seed(results, name, 'last', f'{kind}.1px'):
                    ax.plot(REGIONS[:-1], means, 'o-', color=f'C{number % 10}', label=name, markersize=3)
            ax.set(title=SETTINGS[setting], ylabel=what.partition(' (')[0])
            ax.grid(alpha=0.3)
            ax.legend(fontsize=7, ncols=2)
    return figure


def draw_entropy(found):
    """Boxes from the 25 to the 75 % quantile, whiskers from 5 to 95 %, of smooth and detail windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4 * ((len(found) + 1) // 2)), layout='constrained')
    axes = figure.subplots((len(found) + 1) // 2, 2, squeeze=False).flat
    for ax, (setting, (study, results)) in zip(axes, found.items()):
        boxes, colours = [], []
        for name in study.upsamplers:
            tests = [result['tests']['last'] for result in results if result['upsampler'] == name]
            if not tests or 'entropy smooth.mean' not in tests[0]:
                continue
            for kind, colour in dict(smooth='C0', detail='C1').items():
                at = {
                    q: statistics.fmean(test[f'entropy {kind}.{q}'] for test in tests)
                    for q in ('05', '25', '50', '75', '95')
                }
                label = f'{name}\n{kind}'
                boxes.append(
                    dict(whislo=at['05'], q1=at['25'], med=at['50'], q3=at['75'], whishi=at['95'], label=label)
                )
                colours.append(colour)
        if boxes:
            drawn = ax.bxp(boxes, showfliers=False, patch_artist=True)
            for patch, colour in zip(drawn['boxes'], colours):
                patch.set(facecolor=colour, alpha=0.6)
        ax.set(title=SETTINGS[setting], ylabel='entropy / its largest value', ylim=(0, 1.02))
        ax.tick_params(axis='x', labelsize=6)
    return figure


def main():
    args = parse_args()
    found = read(args.studies)
    if not found:
        raise SystemExit(f'error: {args.studies} has no runs of known_signals_*.py')
    parts = ['# Known signals']
    for setting, (study, results) in found.items():
        parts.append(f'## {SETTINGS[setting]}')
        parts.append(f'{len(results)} of {len(study.upsamplers) * len(study.seeds)} runs.')
        for title, prefix in {'Test pictures': '', 'Training pictures': 'train '}.items():
            for kind, what in KINDS.items():
                parts += [f'{title}, {what}:', error_table(study, results, f'{prefix}{kind}')]
        parts.append('Test pictures one by one, wrong labels:')
        parts.append(picture_table(study, results))
    parts += ['## Kernels of the last step, test pictures', kernel_table(found)]
    parts += ['![errors](known_signals_errors.png)', '![entropy](known_signals_entropy.png)']
    (args.studies / 'known_signals.md').write_text('\n\n'.join(parts) + '\n')
    draw_errors(found).savefig(args.studies / 'known_signals_errors.png', dpi=90)
    draw_entropy(found).savefig(args.studies / 'known_signals_entropy.png', dpi=90)
    print(f'written: {args.studies / "known_signals.md"}')


if __name__ == '__main__':
    main()
