#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Check all data of a config: every picture, label map and annotation. One line for each fault, and a table."""

import os

from _common import check_data, make_config_parser, read_config, register_toolbox
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def parse_args():
    parser = make_config_parser(__doc__)
    parser.add_argument(
        '--dataloaders', nargs='+', choices=LOADERS, default=LOADERS, help='which to check (default: all three)'
    )
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='threads that read (default: one per CPU core)'
    )
    parser.add_argument(
        '--limit', type=int, help='open so many pictures of each data set, evenly spread (default: all)'
    )
    args = parser.parse_args()
    for name in ('workers', 'limit'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    return args


def main():
    from sapa_mm.datasets.faults import check_pictures, read_data_parts

    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    check_data(cfg, args.dataloaders)
    register_toolbox(cfg)
    table = Table(Column('data set', overflow='fold'), 'type', 'pictures', 'checked', 'annotations', 'faults')
    found = 0
    with Progress(transient=True) as progress:

        def show(faults):
            for fault in faults:  # each in one line, however narrow the terminal
                progress.console.print(str(fault), soft_wrap=True, markup=False, highlight=False)

        for part in read_data_parts(cfg, args.dataloaders):
            count = len(part.items) + len(part.files)
            checked = min(count, args.limit or count)
            faults = list(part.faults)
            show(faults)
            for broken in progress.track(
                check_pictures(part, cfg, args.limit, args.workers), total=checked, description=part.key
            ):
                show(broken)
                faults += broken
            table.add_row(part.key, part.kind, *map(str, (count, checked, part.annotations, len(faults))))
            found += len(faults)
    Console().print(table)
    if not table.rows:
        print(f'{args.config} has no data set that can be checked')
    raise SystemExit(1 if found else 0)


if __name__ == '__main__':
    main()
