#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write the commands and tables of the model zoo from its metafiles, or check that they agree.

Each folder of configs has a ``metafile.yml``, in the layout of OpenMMLab's model index with two keys more: every result
has a ``Kind``

    reported    a figure of a paper or its repository; `Source` names it
    converted   published weights, converted and tested here; needs `Weights`
    trained     trained and tested here; `Source` is the page that records the run, `Recorded As` the beginning of the
                heading there, below which the figures are found

and perhaps a ``Note``, and a model's ``Metadata`` name its ``Upsampler``. The table goes between two marks in the
folder's README.md, below commands that train and test one model on each data set, and ``model-index.yml`` lists the
metafiles. ``--costs FOLDER`` counts parameters and
multiply-accumulates (MACs) of the configs in a folder, as tools/get_flops.py does, and writes them into its metafile.
"""

import argparse
import difflib
import re
import sys
from inspect import signature
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import read_config
from get_flops import build_model, count_config, default_shape, parameters, register_toolbox

from sapa_mm.upsamplers import UPSAMPLERS, VARIANTS

ROOT = Path(__file__).parents[2]
BEGIN, END = '<!-- models: written by tools/dev/model_zoo.py -->', '<!-- end of models -->'
KINDS = dict(reported='reported in the paper', converted='converted weights', trained='**trained here**')
HEADER = '# SPDX-License-Identifier: Apache-2.0\n'


def metafiles() -> list[Path]:
    folders = (ROOT / 'configs').iterdir()
    return sorted(folder / 'metafile.yml' for folder in folders if folder.is_dir() and folder.name != '_base_')


def configs_of(folder: Path) -> list[str]:
    return sorted(str(config.relative_to(ROOT)) for config in folder.glob('*.py'))


def with_defaults(upsample_cfg: dict) -> dict:
    """The config with the default of every option that it leaves out."""
    parameters = signature(UPSAMPLERS[upsample_cfg['type'].removeprefix('sapa_mm.')]).parameters
    return {**{name: parameter.default for name, parameter in parameters.items()}, **upsample_cfg}


def upsampler_of(model: dict) -> str | None:
    """Published name of the upsampler of a config's model, or its type, and what a row of a table may have apart.

    None where the model has no ``upsample_cfg``.
    """
    for name, value in model.items():
        if name == 'upsample_cfg' and value and 'type' in value:
            named = [variant for variant, cfg in VARIANTS.items() if cfg.items() <= with_defaults(value).items()]
            return (
                (named[0] if named else value['type'].removeprefix('sapa_mm.'))
                + (', no gate' if value.get('gating') is False else '')
                + (', shared gate' if value.get('gate') == 'shared' else '')
                + (f', d={value["embed_dims"]}' if 'embed_dims' in value else '')
            )
        if isinstance(value, dict) and (found := upsampler_of(value)):
            return found
    return None


def problems(metafile: Path, content: dict) -> list[str]:
    """What is wrong with a metafile, a line each."""
    found = []
    collections = {c['Name'] for c in content['Collections']}
    listed = [model['Config'] for model in content['Models']]
    configs = configs_of(metafile.parent)
    found += [f'{config} is missing' for config in configs if config not in listed]
    found += [f'{config} does not exist' for config in listed if config not in configs]
    found += [f'{config} is there twice' for config in set(listed) if listed.count(config) > 1]
    for model in content['Models']:
        name, metadata = model['Name'], model['Metadata']
        if name != Path(model['Config']).stem:
            found.append(f'{name} must have the name of its config, {Path(model["Config"]).stem}')
        if model['In Collection'] not in collections:
            found.append(f'{name}: there is no collection {model["In Collection"]!r}')
        if model['Config'] in configs:
            upsampler = upsampler_of(read_config(str(ROOT / model['Config'])).model)
            if upsampler is not None and upsampler != metadata['Upsampler']:
                found.append(f'{name}: its upsampler is {upsampler}, not {metadata["Upsampler"]}')
        for result in model.get('Results', []):
            found += [f'{name}: {problem}' for problem in result_problems(result)]
    return found


def result_problems(result: dict) -> list[str]:
    if result.get('Kind') not in KINDS:
        return [f'the Kind of a result must be one of {", ".join(KINDS)}, got {result.get("Kind")!r}']
    if not result.get('Metrics') or not result.get('Source'):
        return ['a result needs Metrics and a Source']
    if result['Kind'] == 'converted' and not result.get('Weights'):
        return ['converted weights need Weights']
    if result['Kind'] != 'trained':
        return []
    page = ROOT / result['Source']
    if not page.is_file() or ROOT / 'docs' / 'results' not in page.parents or not result.get('Recorded As'):
        return [f'a trained result needs Recorded As, and a page under docs/results as Source, got {result["Source"]}']
    sections = re.split(r'^## ', page.read_text(), flags=re.MULTILINE)
    text = ''.join(section for section in sections if section.startswith(result['Recorded As']))
    figures = set(re.findall(r'\d+(?:\.\d+)?', text))
    return [
        f'{result["Source"]} has no {metric} {figure} under {result["Recorded As"]!r}'
        for metric, figure in result['Metrics'].items()
        # as it stands, with two decimals, or as a part of 1 where the table has percent
        if not {str(figure), f'{figure:.2f}', f'{figure / 100:.3f}'} & figures
    ]


def table(content: dict) -> str:
    """The models of a metafile, a row per result, as Markdown."""
    results = [result for model in content['Models'] for result in model.get('Results', [])]
    decimals: dict[str, int] = {}  # of each metric, one number for its column
    for result in results:
        for metric, figure in result['Metrics'].items():
            decimals[metric] = max(decimals.get(metric, 0), len(str(figure).partition('.')[2]))
    metrics = list(decimals)
    head = ['config', 'upsampler', 'data', 'parameters', 'MACs (input)', *metrics, 'kind', 'source']
    lines = [head, ['---', '---', '---', '---:', '---:', *('---:' for _ in metrics), '---', '---']]
    for model in content['Models']:
        metadata = model['Metadata']
        costs = [
            f'{metadata["Parameters"] / 1e6:.2f} M' if 'Parameters' in metadata else '-',
            f'{metadata["MACs"] / 1e9:.2f} G ({metadata["Input"]})' if 'MACs' in metadata else '-',
        ]
        name = Path(model['Config']).name
        row = [f'[{name.removesuffix(".py")}]({name})', metadata['Upsampler'], metadata['Training Data'], *costs]
        for result in model.get('Results') or [None]:
            if result is None:
                lines.append([*row, *('-' for _ in metrics), '-', '-'])
                continue
            figures = [
                f'{result["Metrics"][metric]:.{decimals[metric]}f}' if metric in result['Metrics'] else '-'
                for metric in metrics
            ]
            lines.append([*row, *figures, KINDS[result['Kind']], source(result)])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def commands(content: dict) -> str:
    """How to train and test: one model for each architecture and data set, with SAPA-G or what is next to it."""
    chosen: dict[tuple[str, str], dict] = {}
    for model in content['Models']:
        group = Path(model['Config']).name.split('_')[0], model['Metadata']['Training Data']
        if group not in chosen or rank(model) < rank(chosen[group]):
            chosen[group] = model
    lines = ['```bash title="Read by the tests"', 'source .venv/bin/activate  # the environment of `make test`']
    for (_, data), model in chosen.items():
        config, name = model['Config'], model['Name']
        cfg = read_config(str(ROOT / config))
        checkpoint, gpus = f'work_dirs/{name}/{last_checkpoint(cfg)}', number_of_gpus(name, cfg)
        lines += ['', f'# {name.split("_")[0]}, {data}, ' + ('one GPU or CPU' if gpus == 1 else f'{gpus} GPUs')]
        train, test, count = 'python tools/train.py', 'python tools/test.py', ''
        if gpus > 1:
            train, test, count = 'tools/dist_train.sh', 'tools/dist_test.sh', f' {gpus}'
        lines += [f'{train} {config}{count}', f'{test} {config} \\', f'  {checkpoint}{count}']
    return '\n'.join([*lines, '```'])


def rank(model: dict) -> int:
    order = ('SAPA-G', 'SAPA-B', 'SAPA-D')
    upsampler = model['Metadata']['Upsampler'].split(',')[0]
    return order.index(upsampler) if upsampler in order else len(order)


def last_checkpoint(cfg) -> str:
    """Name of the file that mmengine's CheckpointHook writes at the end."""
    if cfg.default_hooks.checkpoint.get('by_epoch', True):
        return f'epoch_{cfg.train_cfg.max_epochs}.pth'
    return f'iter_{cfg.train_cfg.max_iters}.pth'


def number_of_gpus(name: str, cfg) -> int:
    """As the name of the config says; mmdet's `1x` schedules are for a batch of 16 in all."""
    if named := re.search(r'_(\d+)xb\d', name):
        return int(named[1])
    return cfg.auto_scale_lr.base_batch_size // cfg.train_dataloader.batch_size if '_1x_' in name else 1


def source(result: dict) -> str:
    text = result['Source']
    if result['Kind'] == 'converted':
        text = f'[weights]({result["Weights"]}), {text}'
    elif result['Kind'] == 'trained':
        text = f'[{result["Recorded As"]}](../../{text})'
    return f'{text}; {result["Note"]}' if 'Note' in result else text


def filled(readme: str, content: dict) -> str:
    """The README with its commands and table written anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f'the README has no place for the table: {BEGIN} and {END}')
    return f'{before}{BEGIN}\n\n{commands(content)}\n\n{table(content)}\n\n{END}{after}'


def index(paths: list[Path]) -> str:
    return HEADER + 'Import:\n' + ''.join(f'  - {path.relative_to(ROOT)}\n' for path in paths)


def write_costs(folder: Path) -> None:
    path = folder / 'metafile.yml'
    content = yaml.safe_load(path.read_text())
    for model in content['Models']:
        cfg = read_config(str(ROOT / model['Config']))
        register_toolbox(cfg)
        built = build_model(cfg)
        cost, shape = count_config(cfg, built, default_shape(cfg))
        model['Metadata'].update(Parameters=parameters(built), MACs=cost.macs, Input='x'.join(map(str, shape)))
    path.write_text(HEADER + yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare instead of writing')
    parser.add_argument('--costs', metavar='FOLDER', type=Path, help='count the configs of this folder first')
    args = parser.parse_args()
    if args.costs:
        write_costs(args.costs.resolve())
    paths = metafiles()
    texts, found = {ROOT / 'model-index.yml': index(paths)}, []
    for path in paths:
        if not path.exists():
            found.append(f'{path.parent.name} has no metafile.yml')
            continue
        content = yaml.safe_load(path.read_text())
        found += [f'{path.relative_to(ROOT)}: {problem}' for problem in problems(path, content)]
        readme = path.parent / 'README.md'
        texts[readme] = filled(readme.read_text(), content)
    for path, text in texts.items():
        if not args.check:
            path.write_text(text)
            continue
        stored = path.read_text() if path.exists() else ''
        if stored != text:
            name = str(path.relative_to(ROOT))
            sys.stdout.writelines(
                difflib.unified_diff(stored.splitlines(True), text.splitlines(True), name, 'metafile')
            )
            found.append(f'{name} does not agree with the metafiles: run python tools/dev/model_zoo.py')
    if found:
        sys.exit('\n'.join(found))


if __name__ == '__main__':
    main()
