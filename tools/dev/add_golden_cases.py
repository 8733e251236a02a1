#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Take cases of another folder of golden vectors into tests/data/golden, which holds at most 2 MB.

Gradients of more than a few hundred numbers are kept as the three numbers that the format has for them (their sum, norm
and product with their tensor), computed from the stored ones. Where a case is still large, its outputs and gradients
are rounded to float32. What float32 holds exactly, such as the inputs, is stored so. Of the
auxiliary values those that a test reads are kept. A case that is there already is replaced.

After a conflict in index.json, take either side and add the cases of the other again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[2] / 'tests' / 'data' / 'golden'
#: Beginnings of the auxiliary values that tests/test_golden.py reads.
AUXILIARY = ('aux:out_with_inplace_abn_scale', 'aux:matlab_', 'aux:a2u_py_')


def reduce_arrays(arrays, whole):
    """Three numbers in place of gradients of more than ``whole`` numbers; few auxiliary values."""
    reduced = {}
    for name, x in arrays.items():
        kind, _, key = name.partition(':')
        tensor = {'grad': f'in:{key}', 'grad_param': f'param:{key}'}.get(kind)
        if kind == 'aux' and not name.startswith(AUXILIARY):
            continue
        if tensor in arrays and x.size > whole:
            numbers = [x.sum(), np.sqrt((x * x).sum()), (x * arrays[tensor]).sum()]
            reduced[name.replace('grad', 'gradstat', 1)] = np.array(numbers)
        else:
            reduced[name] = x
    return reduced


def rounded(arrays, kinds):
    """In float32 what it holds exactly, and all arrays of these kinds."""
    return {
        name: np.float32(x)
        if x.dtype == np.float64 and (name.partition(':')[0] in kinds or np.array_equal(np.float32(x), x))
        else x
        for name, x in arrays.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='where the cases are, with its index.json')
    parser.add_argument('names', nargs='+', help='names of cases')
    parser.add_argument('--whole', type=int, default=200, help='gradients of up to so many numbers are kept whole')
    parser.add_argument('--large', type=float, default=12, help='kB beyond which outputs and gradients are rounded')
    args = parser.parse_args()

    source = json.loads((args.folder / 'index.json').read_text())
    cases = {case['name']: case for case in source['cases']}
    index_file = HERE / 'index.json'
    index = json.loads(index_file.read_text()) if index_file.is_file() else dict(meta={}, cases=[])
    kept = {case['name']: case for case in index['cases']}
    for name in args.names:
        if name not in cases:
            parser.error(f'no case {name!r} in {args.folder}; there are {sorted(cases)}')
        with np.load(args.folder / cases[name]['file']) as arrays:
            arrays = rounded(reduce_arrays(dict(arrays), args.whole), ())
        file = HERE / f'{name}.npz'
        np.savez_compressed(file, **arrays)
        if file.stat().st_size > 1000 * args.large:
            arrays = rounded(arrays, ('out', 'grad', 'grad_param'))
            np.savez_compressed(file, **arrays)
        kept[name] = dict(
            cases[name],
            file=file.name,
            shapes={key: list(x.shape) for key, x in arrays.items()},
            dtypes={key: str(x.dtype) for key, x in arrays.items() if x.dtype != np.float64},
        )
        print(f'{name}: {file.stat().st_size / 1000:.0f} kB')

    for key in ('commits', 'array_meaning'):
        index['meta'][key] = dict(sorted({**index['meta'].get(key, {}), **source['meta'][key]}.items()))
    if 'parameter_rule' in source['meta']:
        index['meta']['parameter_rule'] = source['meta']['parameter_rule']
    # one case a line, so that changes can be read
    lines = ',\n'.join(json.dumps(kept[name]) for name in sorted(kept))
    index_file.write_text(f'{{"meta": {json.dumps(index["meta"], indent=1)},\n"cases": [\n{lines}\n]}}\n')
    print(f'all files: {sum(path.stat().st_size for path in HERE.iterdir()) / 1e6:.2f} MB of 2')


if __name__ == '__main__':
    main()
