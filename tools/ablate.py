#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run the ablations of SAPA (Table 4 of the paper) on a model and data set of one's own, and print the table.

The 15 cells are 12 runs, since three cells are settings that another cell has too. Each run is trained and tested by
tools/train.py and tools/test.py, one after the other. Started again with the same arguments, a killed ablation goes on
where it was: finished runs are kept, and the one that was interrupted resumes from its last checkpoint.

The checkpoint that is tested is the best one where the config keeps one (`save_best`), as in the paper; else the last.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from _common import check_data, fail, read_config
from mmengine.config import DictAction
from mmengine.runner import find_latest_checkpoint
from rich import box
from rich.console import Console
from rich.table import Table

TOOLS = Path(__file__).parent
#: What the paper leaves as it is while one setting changes. SAPA-B is its default model.
FIXED = dict(similarity='bilinear', normalization='softmax', kernel_size=5, embed_dims=64)


@dataclass(frozen=True)
class Cell:
    """One cell of the table: the row of the paper, its setting, what it sets, and mIoU of SegFormer-B1 on ADE20K."""

    row: str
    setting: str
    changes: dict
    paper: float

    @property
    def options(self) -> dict:
        """Options of ``sapa_mm.SAPA``."""
        return {**FIXED, **self.changes}

    @property
    def run(self) -> str:
        """Name of the run, the same for cells of the same options."""
        o = self.options
        return f'sapa-{o["similarity"]}_{o["normalization"]}_k{o["kernel_size"]}_d{o["embed_dims"]}'


def row(name: str, key: str, settings: dict, **fixed) -> list[Cell]:
    return [Cell(name, label, {**fixed, key: value}, paper) for label, (value, paper) in settings.items()]


#: In the order of the paper. The normalisations were compared with SAPA-G, kernel size and width with SAPA-B.
CELLS = [
    *row('similarity', 'similarity', dict(
        I=('inner', 43.1), B=('bilinear', 43.2), P=('plain', 43.2), G=('gated', 44.4),
    )),
    *row('normalisation (G)', 'normalization', dict(
        exp=('softmax', 44.4), relu=('relu', 42.2), sigmoid=('sigmoid', 43.5), softplus=('softplus', 43.3),
    ), similarity='gated'),
    *row('kernel size (B)', 'kernel_size', {'3': (3, 43.1), '5': (5, 43.2), '7': (7, 42.5)}),
    *row('embedding width (B)', 'embed_dims', {
        '16': (16, 43.0), '32': (32, 43.4), '64': (64, 43.2), '128': (128, 43.4),
    }),
]  # fmt: skip


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a model with an upsampler, for which SAPA is put in')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/ablation_<name of the config>')
    parser.add_argument('--metric', default='mIoU', help='what to compare, by its name in the test log (default: mIoU)')
    parser.add_argument('--dry-run', action='store_true', help='write the configs and print the table of what there is')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    return parser.parse_args()


def upsample_cfgs(model) -> list:
    """All ``upsample_cfg`` with a type in the config of a model, to be changed in place."""
    if isinstance(model, (list, tuple)):
        return [found for item in model for found in upsample_cfgs(item)]
    if not isinstance(model, dict):
        return []
    here = model.get('upsample_cfg')
    found = [here] if isinstance(here, dict) and 'type' in here else []
    return found + [found for key, value in model.items() if key != 'upsample_cfg' for found in upsample_cfgs(value)]


def config_of(args, cell: Cell) -> str:
    """The text of the config of a cell; SAPA's other options stay as CONFIG has them."""
    cfg = read_config(args.config, args.cfg_options, needs=('train_dataloader', 'test_dataloader', 'test_evaluator'))
    places = upsample_cfgs(cfg.model)
    if not places:
        fail(f'{args.config} has no upsample_cfg: give a config whose model has an upsampler, such as one with SAPA')
    for place in places:
        if place['type'] not in ('SAPA', 'sapa_mm.SAPA'):
            place.clear()
        place.update(type='sapa_mm.SAPA', **cell.options)
    cfg.setdefault('randomness', dict(seed=0))  # one seed for all
    check_data(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    return cfg.pretty_text + '\n'


def write(path: Path, text: str) -> None:
    """Write all of it or nothing."""
    part = path.with_name(path.name + '.part')
    part.write_text(text)
    os.replace(part, path)


def write_configs(texts: dict[str, str], work_dir: Path) -> dict[str, Path]:
    """Write one config per run; end the program if the folder holds the runs of other settings."""
    paths = {run: work_dir / f'{run}.py' for run in texts}
    for run, text in texts.items():
        if paths[run].exists() and paths[run].read_text() != text:
            fail(f'{paths[run]} is of another config or other options: give another --work-dir, or remove that one')
    for run, text in texts.items():
        if not paths[run].exists():
            write(paths[run], text)
    return paths


def run_tool(lock, name: str, log: Path, *args) -> None:
    """Run a tool with its output in ``log``; it holds the lock too, so it is known to run should this one be killed."""
    with log.open('a') as out:
        command = [sys.executable, str(TOOLS / name), *map(str, args)]
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),)).returncode
    if status:
        lines = log.read_text().strip().splitlines() or ['no output']
        fail(f'{name} ended with status {status}: {lines[-1]} (log: {log})')


def tested_checkpoint(folder: Path) -> Path:
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    return best[-1] if best else Path(find_latest_checkpoint(str(folder)))


def train_and_test(lock, config: Path, folder: Path) -> None:
    """Train, or go on with training; test; keep the metrics."""
    folder.mkdir(exist_ok=True)
    run_tool(lock, 'train.py', folder / 'train.log', config, '--work-dir', folder, '--resume')
    checkpoint = tested_checkpoint(folder)
    run_tool(lock, 'test.py', folder / 'test.log', config, checkpoint, '--work-dir', folder / 'test')
    written = max((folder / 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    write(folder / 'result.json', json.dumps(dict(checkpoint=checkpoint.name, **json.loads(written.read_text()))))


def results(work_dir: Path) -> dict[str, dict]:
    """Metrics of the finished runs."""
    paths = {cell.run: work_dir / cell.run / 'result.json' for cell in CELLS}
    return {run: json.loads(path.read_text()) for run, path in paths.items() if path.exists()}


def table(found: dict[str, dict], metric: str) -> Table:
    """The cells in the order of the paper; a cell that is not there yet is a dash."""
    result = Table(box=box.MARKDOWN)
    for name in ('ablation', 'setting', metric, 'paper'):
        result.add_column(name, justify='right' if name in (metric, 'paper') else 'left', no_wrap=True)
    for cell in CELLS:
        value = found.get(cell.run, {}).get(metric)
        result.add_row(cell.row, cell.setting, '-' if value is None else f'{value:.2f}', f'{cell.paper:.1f}')
    return result


def main():
    args = parse_args()
    if args.work_dir is None:
        args.work_dir = Path('work_dirs') / f'ablation_{Path(args.config).stem}'
    texts = {cell.run: config_of(args, cell) for cell in CELLS}
    args.work_dir.mkdir(parents=True, exist_ok=True)
    console = Console()
    with (args.work_dir / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f'{args.work_dir} is in use: an ablation, or a training that one left behind, still runs there')
        configs = write_configs(texts, args.work_dir)
        for number, (run, config) in enumerate(configs.items(), 1):
            if args.dry_run or run in results(args.work_dir):
                continue
            console.print(f'{number}/{len(configs)} {run}')
            train_and_test(lock, config, args.work_dir / run)
            value = results(args.work_dir)[run].get(args.metric)
            if value is None:
                fail(f'the test of {run} gave no {args.metric}; there is {", ".join(results(args.work_dir)[run])}')
    console.print(table(results(args.work_dir), args.metric))
    print('paper: SegFormer-B1 on ADE20K. K = 5, d = 64 and exp where nothing else is said.')


if __name__ == '__main__':
    main()
