#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time the inference of models that differ in their upsamplers, random weights, all in one run, in turn.

python tools/benchmark_models.py configs/segformer/*b1_*ade20k* --shape 512 512
"""

import argparse
import json
from pathlib import Path

import torch
from benchmark_ops import as_entry, environment, measure
from mmengine import Config, DefaultScope
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, help='the first is what the others are compared with')
    parser.add_argument('--shape', type=int, nargs=2, default=(512, 512), help='height and width of the image')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--repeats', type=int, default=15, help='rounds over all models, after three of warm-up')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args()


def build(path, device):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None  # time does not depend on the weights
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if cfg.default_scope == 'mmdet':
            import mmdet.models  # noqa: F401
        else:
            import mmseg.models  # noqa: F401
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    return model.to(device).eval()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    image = torch.randn(1, 3, *args.shape, device=args.device)
    models = {path.stem: build(path, args.device) for path in args.configs}

    def inference(model):
        def run():
            with torch.inference_mode():
                model(image, mode='tensor')

        return run

    quartiles = measure({name: inference(model) for name, model in models.items()}, args.repeats, args.device)
    first = next(iter(quartiles.values()))[1]
    table = Table('', 'ms (median)', 'x the first', title=f'inference, {args.shape[0]} x {args.shape[1]}')
    results = {}
    for name, values in quartiles.items():
        median = values[1]
        results[name] = dict(as_entry(values), ratio=median / first)
        table.add_row(name, f'{median * 1e3:.1f}', f'{median / first:.3f}')
    Console().print(table)
    if args.out:
        report = dict(environment=environment(args), shape=list(args.shape), models=results)
        args.out.write_text(json.dumps(report, indent=1) + '\n')
        print(f'written: {args.out}')


if __name__ == '__main__':
    main()
