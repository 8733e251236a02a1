#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What every CUDA kernel takes of a multiprocessor: registers, local memory, blocks at the same time.

OBJECTS=build/now .ci/check_cuda.sh
python tools/dev/cuda_resources.py now=build/now [first=OTHER/build/first] --json docs/benchmarks/cuda_kernels.json

A folder holds the objects of ops/cuda/*.cu. Prints a table of the families of kernels, for each label and
architecture: how many there are, their registers, the blocks of 256 threads that a multiprocessor holds by them, and
the most bytes of local memory, where there are any. The JSON has every kernel. Needs ``cuobjdump`` (of CUDA, or
Triton's) and ``c++filt``. Shared memory is asked for at the launch and is not in the objects.
"""

import argparse
import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

THREADS = 256  # of a block, kThreads in ops/cuda/view.cuh
#: Of a multiprocessor; registers are handed out to warps in pieces of 256.
REGISTERS, MOST_THREADS, PIECE, WARP = 65536, 2048, 256, 32
USAGE = re.compile(r'Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)')


def find_cuobjdump():
    """CUDA's, else the one that Triton brings."""
    found = shutil.which('cuobjdump')
    if found:
        return found
    try:
        import triton
    except ImportError:
        raise SystemExit('cuobjdump is missing: it comes with CUDA, and with triton') from None
    return str(Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump')


def resident_blocks(registers):
    """Blocks of ``THREADS`` that the registers of a multiprocessor hold; shared memory may allow fewer."""
    of_a_warp = -(-registers * WARP // PIECE) * PIECE
    return min(REGISTERS // (of_a_warp * THREADS // WARP), MOST_THREADS // THREADS)


def kernels(folder, cuobjdump):
    """One dict for every kernel and architecture of the objects of a folder."""
    found = []
    for path in sorted(Path(folder).glob('*.o')):
        text = subprocess.run(
            [cuobjdump, '--dump-resource-usage', path], capture_output=True, text=True, check=True
        ).stdout
        # one section for each architecture
        for section in text.split('arch = ')[1:]:
            arch = section.split()[0]
            for name, registers, stack, local in USAGE.findall(section):
                blocks = resident_blocks(int(registers))
                usage = dict(registers=int(registers), local_bytes=int(stack) + int(local), blocks=blocks)
                found.append(dict(source=path.stem, arch=arch, kernel=name, **usage))
    if not found:
        raise SystemExit(f'no kernel in the objects of {folder}')
    names = subprocess.run(
        ['c++filt'], input='\n'.join(k['kernel'] for k in found), capture_output=True, text=True
    ).stdout
    for kernel, name in zip(found, names.splitlines(), strict=True):
        # without the namespaces, the arguments and the lengths of types, which say nothing to a reader
        name = re.sub(r'\(anonymous namespace\)::|sapa_mm::|c10::', '', name)
        kernel['kernel'] = re.sub(r'^void ', '', name[: name.rindex('(')] if name.endswith(')') else name)
    return found


def family(kernel):
    return f'{kernel["source"].removesuffix("_kernel")}: {kernel["kernel"].split("<")[0]}'


def table(labels):
    """Markdown, one row for each family."""
    archs = sorted({k['arch'] for found in labels.values() for k in found})
    columns = [(label, arch) for label in labels for arch in archs]
    rows = defaultdict(lambda: defaultdict(list))
    for label, found in labels.items():
        for k in found:
            rows[family(k)][label, k['arch']].append(k)

    def span(found, key):
        values = [k[key] for k in found]
        return f'{min(values)}' if min(values) == max(values) else f'{min(values)}-{max(values)}'

    lines = ['| kernels | ' + ' | '.join(f'{label}, {arch}' for label, arch in columns) + ' |']
    lines.append('| --- ' * (len(columns) + 1) + '|')
    for name in sorted(rows):
        cells = []
        for column in columns:
            found = rows[name][column]
            local = max((k['local_bytes'] for k in found), default=0)
            cell = f'{len(found)}: {span(found, "registers")}, {span(found, "blocks")}' if found else '-'
            cells.append(f'{cell}, {local} B' if local else cell)
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='+', metavar='label=folder', help='objects, and what to call them')
    parser.add_argument('--json', type=Path, help='write every kernel here')
    args = parser.parse_args()
    cuobjdump = find_cuobjdump()
    labels = {}
    for item in args.folders:
        label, _, folder = item.partition('=')
        if not folder or not Path(folder).is_dir():
            parser.error(f'{item!r} must be LABEL=FOLDER with a folder that is there')
        labels[label] = kernels(folder, cuobjdump)
    if args.json:
        lines = (
            f' {json.dumps(label)}: [\n' + ',\n'.join(f'  {json.dumps(k)}' for k in found) + '\n ]'
            for label, found in labels.items()
        )
        args.json.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    print(table(labels))


if __name__ == '__main__':
    main()
