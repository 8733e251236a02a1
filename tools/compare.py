#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare upsamplers on a model and data set of one's own: several seeds, paired differences, one report.

STUDY is a config of mmengine with

    config       the model and data, a config; a relative path counts from the study
    upsamplers   name -> upsample_cfg; None is the interpolation of the parent class
    baseline     the name that the others are compared with
    seeds        a list of integers, at least three for any conclusion
    metrics      names in the test log that make the tables; the first is the main one
    options      optional: settings to override in all runs, such as the budget, as --cfg-options does
    place        optional: where upsample_cfg goes (default: model.decode_head.upsample_cfg)
    pictures     optional: pictures whose upsampled features the report shows
    percent      optional: metrics that the test gives as fractions; the report has them times 100

Each run is a process. It trains, then tests the last checkpoint and, where there is one (`save_best`), the best.
Runs of one seed differ by the upsampler alone, so differences are taken by seed. Started again, a killed study goes on:
finished runs are kept, others resume from their last checkpoint. When the study is killed, its runs end with it.

Written into the work dir: runs/NAME_sSEED.json with all that is known of a run, report.md, report.html, curves.png.
"""

import argparse
import base64
import ctypes
import fcntl
import html
import io
import json
import math
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _common import build_runner, check_data, fail, find_fault, find_resumable, read_config, register_toolbox

# isort: split
import torch
from ablate import tested_checkpoint, write, write_configs
from mmengine.config import Config
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

NEEDS = ('config', 'upsamplers', 'baseline', 'seeds', 'metrics')
#: With fewer seeds the report says that nothing follows from it.
ENOUGH_SEEDS = 3


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='study file')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<name of the study>')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time, each a process (default: 1)')
    parser.add_argument('--seeds', type=int, nargs='+', help="run only these of the study's seeds (default: all)")
    parser.add_argument('--report', action='store_true', help='run nothing: write the report of the finished runs')
    parser.add_argument('--run', help=argparse.SUPPRESS)  # the process of one run
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be positive, got {args.jobs}')
    return args


def read_study(path: Path) -> Config:
    if not path.is_file():
        fail(f'there is no study {path}')
    study = Config.fromfile(path)
    missing = [key for key in NEEDS if not study.get(key)]
    if missing:
        fail(f'{path} has no {", ".join(missing)}')
    if study.baseline not in study.upsamplers:
        fail(f'{path}: the baseline {study.baseline!r} is none of the upsamplers {", ".join(study.upsamplers)}')
    if len(set(study.seeds)) < len(study.seeds):
        fail(f'{path}: a seed is named twice in {study.seeds}')
    return study


def config_text(path: Path, study: Config, upsampler: str, seed: int) -> str:
    """The whole config of a run."""
    cfg = read_config(
        str(path.parent / study.config), study.get('options'), ('train_dataloader', 'test_dataloader', 'test_evaluator')
    )
    keys = study.get('place', 'model.decode_head.upsample_cfg').split('.')
    place = cfg
    for key in keys[:-1]:
        if key not in place:
            fail(f'{study.config} has no {".".join(keys[:-1])}, where the study puts upsample_cfg')
        place = place[key]
    place[keys[-1]] = study.upsamplers[upsampler]
    cfg.randomness = dict(seed=seed)
    check_data(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    return cfg.pretty_text + '\n'


# ---- one run, in a process of its own


def run_one(config: Path, folder: Path, out: Path) -> None:
    """Train, or go on with training; test; write what is known of the run."""
    from train import set_amp, set_hooks, set_resume

    cfg = read_config(str(config))
    cfg.work_dir = str(folder)
    cfg.launcher = 'none'
    best = tested_best(folder)
    if best is not None and find_fault(str(best)):
        best.unlink()  # cut short by a kill; the training goes on before it and keeps it again
    set_resume(cfg, 'auto', trust=False)
    set_amp(cfg, False)
    set_hooks(cfg)
    register_toolbox(cfg)
    runner = build_runner(cfg)
    runner.train()
    memory = peak_memory()

    tests = {}
    last = find_resumable(str(folder))
    for name, checkpoint in (('last', last), ('best', tested_best(folder))):
        if checkpoint is None:
            continue
        file = Path(checkpoint).name
        if name == 'best' and file.endswith(f'_{Path(last).name}'):  # best_METRIC_iter_N.pth: the same weights
            tests[name] = {**tests['last'], 'checkpoint': file}
            continue
        runner.load_checkpoint(str(checkpoint))
        tests[name] = dict(checkpoint=file, **runner.test())
    training, validation = curves(folder)
    times = [entry['time'] for entry in training.values()]
    write(
        out,
        json.dumps(
            dict(
                upsampler=config.parent.name,
                seed=cfg.randomness.seed,
                tests=tests,
                validation=validation,
                loss={step: entry['loss'] for step, entry in training.items()},
                seconds_per_iteration=statistics.median(times) if times else None,
                peak_memory_mib=memory,
                **costs(cfg),
                machine=dict(
                    processor=platform.processor() or platform.machine(),
                    threads=torch.get_num_threads(),
                    device=str(next(runner.model.parameters()).device),
                    torch=torch.__version__,
                    python=platform.python_version(),
                ),
            ),
            indent=1,
            default=float,  # mmseg's means are numpy's
        ),
    )


def tested_best(folder: Path) -> Path | None:
    return tested_checkpoint(folder) if list(folder.glob('best_*.pth')) else None


def peak_memory() -> float:
    """MiB: of the GPU where there is one, else the largest resident set of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux


def costs(cfg) -> dict:
    """Parameters and MACs of one image of the size that is trained at; None where the config names no size."""
    from get_flops import build_model, count_config, default_shape, parameters

    shape = default_shape(cfg)
    model = build_model(cfg)
    number = parameters(model)
    return dict(parameters=number, macs=None if shape is None else count_config(cfg, model, shape)[0].macs)


def curves(folder: Path) -> tuple[dict, dict]:
    """Iteration -> scalars, of training and of validation, over all sessions; the last session counts."""
    training, validation = {}, {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill
                continue
            (training if 'loss' in entry else validation)[entry['step']] = entry
    return dict(sorted(training.items())), dict(sorted(validation.items()))


# ---- all runs


def die_with_parent():
    """In a child, before it starts: to be killed when the study is. Linux only; elsewhere the lock keeps order."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def take(lock, work_dir: Path, patience: float = 5) -> None:
    """Hold the work dir alone; runs hold it too, and those of a killed study need a moment to end."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                fail(f'{work_dir} is in use: another process runs this study there')
            time.sleep(0.1)


def run_all(args, configs: dict[str, Path], lock) -> list[str]:
    """Run what is not finished, ``args.jobs`` at a time; returns a line for each run that failed."""
    waiting = [run for run in configs if not result_path(args.work_dir, run).exists()]
    if args.seeds is not None:
        waiting = [run for run in waiting if int(run.rpartition('/s')[2]) in args.seeds]
    environment = dict(os.environ)
    if args.jobs > 1:
        environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // args.jobs)))
    running, failed = {}, []
    columns = (
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[note]}'),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        every = progress.add_task('all runs', total=len(configs), completed=len(configs) - len(waiting), note='')
        try:
            while waiting or running:
                while waiting and len(running) < args.jobs:
                    run = waiting.pop(0)
                    folder = folder_of(args.work_dir, run)
                    folder.mkdir(parents=True, exist_ok=True)
                    command = [sys.executable, __file__, args.study, '--work-dir', args.work_dir, '--run', run]
                    with (folder / 'run.log').open('a') as log:
                        process = subprocess.Popen(
                            list(map(str, command)), stdout=log, stderr=log, env=environment,
                            preexec_fn=die_with_parent, pass_fds=(lock.fileno(),),
                        )  # fmt: skip
                    steps = Config.fromfile(configs[run]).train_cfg.get('max_iters')
                    running[run] = process, progress.add_task(f'  {run}', total=steps, note='')
                time.sleep(0.2)
                for run, (process, task) in list(running.items()):
                    show(progress, task, folder_of(args.work_dir, run))
                    if process.poll() is None:
                        continue
                    del running[run]
                    progress.remove_task(task)
                    progress.advance(every)
                    if process.returncode or not result_path(args.work_dir, run).exists():
                        log = folder_of(args.work_dir, run) / 'run.log'
                        lines = log.read_text().strip().splitlines() or ['no output']
                        failed.append(f'{run} ended with status {process.returncode}: {lines[-1]} (log: {log})')
        finally:
            for process, _ in running.values():
                process.kill()
    return failed


def show(progress, task, folder: Path) -> None:
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    lines = files[-1].read_text().splitlines() if files else []
    try:
        entry = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:  # being written
        return
    note = f'loss {entry["loss"]:.3f}' if 'loss' in entry else ''
    progress.update(task, completed=entry.get('step', 0), note=note)


def folder_of(work_dir: Path, run: str) -> Path:
    return work_dir / run


def result_path(work_dir: Path, run: str) -> Path:
    return work_dir / 'runs' / f'{run.replace("/", "_")}.json'


# ---- the report


def summary(values: list[float]) -> str:
    """Mean and standard deviation of the sample."""
    if not values:
        return '-'
    mean = statistics.fmean(values)
    return f'{mean:.2f}' if len(values) < 2 else f'{mean:.2f} ± {statistics.stdev(values):.2f}'


def difference(values: dict[int, float], baseline: dict[int, float]) -> str:
    """Mean of the differences by seed, with its 95 % interval by Student's t."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return '-'
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f'{mean:+.2f}'
    half = half_width(differences)
    return f'{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]'


def half_width(values: list[float], level: float = 0.95) -> float:
    from scipy import stats

    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * spread


def by_seed(results: list[dict], upsampler: str, test: str, metric: str) -> dict[int, float]:
    return {
        result['seed']: result['tests'][test][metric]
        for result in results
        if result['upsampler'] == upsampler and metric in result['tests'].get(test, {})
    }


def accuracy_rows(study, results) -> tuple[list[str], list[list[str]]]:
    """A row for each upsampler: seeds, and of each metric the last and best checkpoint and the difference."""
    tests = [name for name in ('last', 'best') if any(name in result['tests'] for result in results)]
    header = ['upsampler', 'seeds']
    for metric in study.metrics:
        header += [*(f'{metric} {test}' for test in tests), f'minus {study.baseline} (last)']
    rows = []
    for name in study.upsamplers:
        row = [name, str(len(by_seed(results, name, 'last', study.metrics[0])))]
        for metric in study.metrics:
            row += [summary(list(by_seed(results, name, test, metric).values())) for test in tests]
            last = by_seed(results, name, 'last', metric)
            baseline = by_seed(results, study.baseline, 'last', metric)
            row.append('' if name == study.baseline else difference(last, baseline))
        rows.append(row)
    return header, rows


def cost_rows(study, results) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name in study.upsamplers:
        found = [result for result in results if result['upsampler'] == name]
        if found:
            seconds = [result['seconds_per_iteration'] for result in found if result['seconds_per_iteration']]
            macs = found[0]['macs']
            rows.append(
                [
                    name,
                    f'{statistics.median(seconds):.2f}' if seconds else '-',
                    f'{max(result["peak_memory_mib"] for result in found):.0f}',
                    f'{found[0]["parameters"] / 1e6:.3f}',
                    '-' if macs is None else f'{macs / 1e9:.3f}',
                ]
            )
    return ['upsampler', 's per iteration', 'peak memory, MiB', 'parameters, M', 'GMAC'], rows


def class_rows(study, results) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Of every metric with figures by class, ``NAME.CLASS``: a row for each class, a column for each upsampler."""
    names = dict.fromkeys(key for result in results for key in result['tests']['last'] if '.' in key)
    tables = {}
    for metric in dict.fromkeys(name.partition('.')[0] for name in names):
        rows = []
        for key in (name for name in names if name.partition('.')[0] == metric):
            baseline = by_seed(results, study.baseline, 'last', key)
            row = [key.partition('.')[2]]
            for name in study.upsamplers:
                values = by_seed(results, name, 'last', key)
                text = summary(list(values.values()))
                row.append(text if name == study.baseline or not values else f'{text} ({difference(values, baseline)})')
            rows.append(row)
        tables[metric] = (['class', *study.upsamplers], rows)
    return tables


def verdict(study, results) -> str:
    planned = len(study.upsamplers) * len(study.seeds)
    lines = [f'{len(results)} of {planned} runs are finished.']
    if len(results) < planned:
        lines.append('The study is unfinished.')
    seeds = [len(by_seed(results, name, 'last', study.metrics[0])) for name in study.upsamplers]
    if min(seeds) < ENOUGH_SEEDS:
        lines.append(f'Of an upsampler with fewer than {ENOUGH_SEEDS} seeds nothing can be concluded.')
    lines.append(
        'Figures are of the pictures the study tests on: mean ± standard deviation over seeds; differences are taken '
        "by seed, in brackets their 95 % interval by Student's t. The intervals are not corrected for their number."
    )
    return ' '.join(lines)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (header, ['---'] * len(header), *rows))


def html_table(header: list[str], rows: list[list[str]]) -> str:
    head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>' for row in rows)
    return f'<table><tr>{head}</tr>{body}</table>'


def draw_curves(study, results):
    """Validation of the main metric over iterations, and the test figures of every seed."""
    from matplotlib.figure import Figure

    metric = study.metrics[0]
    figure = Figure(figsize=(11, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(study.upsamplers):
        colour = f'C{number % 10}'
        found = [result for result in results if result['upsampler'] == name]
        steps = {}
        for result in found:
            for step, entry in result['validation'].items():
                if metric in entry:
                    steps.setdefault(int(step), []).append(entry[metric])
        if steps:
            ordered = sorted(steps)
            left.plot(ordered, [statistics.fmean(steps[step]) for step in ordered], 'o-', color=colour, label=name)
        values = list(by_seed(results, name, 'last', metric).values())
        right.plot([number] * len(values), values, 'o', color=colour)
    left.set(xlabel='iteration', ylabel=f'{metric}, validation, mean over seeds')
    if left.lines:
        left.legend(fontsize=7)
    right.set(ylabel=f'{metric}, test, each seed', xticks=range(len(study.upsamplers)))
    right.set_xticklabels(list(study.upsamplers), rotation=30, ha='right', fontsize=7)
    return figure


def feature_figures(args, study, results) -> dict:
    """Title -> figure: upsampled features on the study's pictures, of the first finished seed of every upsampler."""
    if not study.get('pictures'):
        return {}
    from draw_features import record

    from sapa_mm.visualization import draw_upsampled

    figures = {}
    for picture in study.pictures:
        stages = {}
        for name in study.upsamplers:
            seeds = [result['seed'] for result in results if result['upsampler'] == name]
            run = f'{name}/s{min(seeds)}' if seeds and study.upsamplers[name] is not None else None
            checkpoint = run and find_resumable(str(folder_of(args.work_dir, run)))
            if checkpoint:
                cfg = read_config(str(config_path(args.work_dir, run)))
                device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
                stages[name] = record(cfg, checkpoint, str(picture), device)[0].first
        if stages:
            figures[f'Upsampled features of {Path(picture).name}'] = draw_upsampled(stages)
    return figures


def png(figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=90)
    return content.getvalue()


STYLE = (
    'body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse;'
    'display:block;overflow-x:auto}th,td{border:1px solid #bbb;padding:.2em .6em;text-align:right;white-space:nowrap}'
    'th:first-child,td:first-child{text-align:left}img{max-width:100%}'
)


def write_report(args, study) -> None:
    results = read_results(args.work_dir, study)
    console = Console()
    if not results:
        console.print('no run is finished')
        return
    sections = {'Accuracy': accuracy_rows(study, results), 'Cost': cost_rows(study, results)}
    sections.update((f'{metric} by class', table) for metric, table in class_rows(study, results).items())
    header, rows = sections['Accuracy']
    table = Table(*header, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    text = verdict(study, results)
    console.print(text)

    curve = png(draw_curves(study, results))
    (args.work_dir / 'curves.png').write_bytes(curve)
    tables = '\n\n'.join(f'## {title}\n\n{markdown(*content)}' for title, content in sections.items())
    write(args.work_dir / 'report.md', f'# {args.study.stem}\n\n{text}\n\n{tables}\n\n![curves](curves.png)\n')
    pictures = {'Curves': curve}
    pictures.update((title, png(figure)) for title, figure in feature_figures(args, study, results).items())
    parts = [f'<h2>{html.escape(title)}</h2>{html_table(*content)}' for title, content in sections.items()]
    parts += [
        f'<h2>{html.escape(title)}</h2><img alt="" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        for title, content in pictures.items()
    ]
    raw = html.escape(json.dumps(read_raw(args.work_dir, study)))
    write(
        args.work_dir / 'report.html',
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(args.study.stem)}</title><style>{STYLE}</style>'
        f'<h1>{html.escape(args.study.stem)}</h1><p>{html.escape(text)}</p>{"".join(parts)}'
        f'<details><summary>All runs as JSON</summary><pre>{raw}</pre></details>\n',
    )
    console.print(f'written: {args.work_dir / "report.md"}, {args.work_dir / "report.html"}')


def read_raw(work_dir: Path, study) -> list[dict]:
    paths = [result_path(work_dir, run) for run in runs(study)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def read_results(work_dir: Path, study) -> list[dict]:
    """The finished runs, with the study's fractions as percent."""
    results = read_raw(work_dir, study)
    for result in results:
        for figures in (*result['tests'].values(), *result['validation'].values()):
            figures.update((key, 100 * figures[key]) for key in study.get('percent', ()) if key in figures)
    return results


def runs(study) -> dict[str, tuple[str, int]]:
    """Seed by seed, so that a study that is cut short has compared all upsamplers on as many seeds as it could."""
    return {f'{name}/s{seed}': (name, seed) for seed in study.seeds for name in study.upsamplers}


def config_path(work_dir: Path, run: str) -> Path:
    return work_dir / f'{run}.py'


def main():
    args = parse_args()
    study = read_study(args.study)
    strange = sorted({*(args.seeds or ())} - {*study.seeds})
    if strange:
        fail(f'--seeds: {strange[0]} is none of the seeds {study.seeds} of {args.study}')
    if args.work_dir is None:
        args.work_dir = Path('work_dirs') / args.study.stem
    if args.run:
        run_one(
            config_path(args.work_dir, args.run),
            folder_of(args.work_dir, args.run),
            result_path(args.work_dir, args.run),
        )
        return
    failed = []
    if not args.report:
        (args.work_dir / 'runs').mkdir(parents=True, exist_ok=True)
        for name in study.upsamplers:
            (args.work_dir / name).mkdir(exist_ok=True)
        with (args.work_dir / 'lock').open('w') as lock:
            take(lock, args.work_dir)
            texts = {run: config_text(args.study, study, *what) for run, what in runs(study).items()}
            failed = run_all(args, write_configs(texts, args.work_dir), lock)
    write_report(args, study)
    if failed:
        fail('; '.join(failed))


if __name__ == '__main__':
    main()
