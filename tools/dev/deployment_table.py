#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run every upsampler compiled, exported, in ONNX, in low precision and twice, and write docs/deployment.md's tables.

python tools/dev/deployment_table.py                 every cell of every upsampler: most of an hour on two cores
python tools/dev/deployment_table.py SAPA-G DLU      these rows alone
python tools/dev/deployment_table.py --render        only the page, from the stored results

Results are kept in docs/benchmarks/deployment_cpu.json, row by row, so that a run can be cut off. A cell that fails
says so there and in the table; nothing is left out.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from mmengine.registry import MODELS

from sapa_mm.upsamplers import VARIANTS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))  # for benchmark_ops and export_onnx

PAGE = ROOT / 'docs' / 'deployment.md'
RESULTS = ROOT / 'docs' / 'benchmarks' / 'deployment_cpu.json'
BEGIN, END = '<!-- made by tools/dev/deployment_table.py -->', '<!-- end -->'

CHANNELS = 32  # the group norms among the upsamplers have 32 groups
#: Ten sizes of feature and guide: ratio 2, odd sides, other ratios, equal, guide smaller.
SIZES = (
    ((6, 8), (12, 16)),
    ((4, 3), (8, 6)),
    ((5, 3), (9, 5)),
    ((3, 4), (11, 10)),
    ((4, 3), (4, 3)),
    ((7, 5), (4, 3)),
    ((6, 8), (11, 15)),
    ((5, 7), (20, 28)),
    ((9, 4), (17, 8)),
    ((8, 8), (8, 16)),
)
#: Smallest side of a guide that an exported program takes, where it is not 1.
SMALLEST_EXPORTED = dict(ReSFU=4)
#: Whose compiled training is held in float64, because a gradient of it is rounding in float32, in eager torch too:
#: FaPN's jumps where a sample crosses a position, and that of the bias of a norm in ReSFU is a sum that cancels to 0.
IN_FLOAT64 = ('FaPN', 'ReSFU')
#: Where the times are taken.
TIMED = ((64, 64), (128, 128))
FORMATS = dict(nchw=torch.contiguous_format, channels_last=torch.channels_last)
#: Largest difference over largest value.
TOLERANCE = dict(float32=1e-4, bfloat16=0.06, float16=0.01)


def build(name):
    """The variant with weights large enough that kernels and offsets are far from those of a fresh module."""
    torch.manual_seed(0)
    module = MODELS.build(dict(VARIANTS[name], in_channels=CHANNELS))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def maps(sizes, memory_format=torch.contiguous_format, batch=2, dtype=torch.float32):
    """A feature and a guide."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(batch, CHANNELS, *size, generator=generator).to(dtype, memory_format=memory_format)
        for size in sizes
    )


def infer(function, module, inputs):
    with torch.no_grad():
        return [function(*inputs)]


def train(function, module, inputs):
    """The result, and the gradients of inputs and parameters."""
    module.zero_grad()
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    (output * output.detach().cos()).sum().backward()
    grads = [x.grad for x in (*leaves, *module.parameters())]
    return [output.detach(), *(torch.zeros(1) if grad is None else grad.clone() for grad in grads)]


def difference(found, expected):
    """Largest difference over largest value, of any of the tensors."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            raise ValueError(f'a tensor of {tuple(a.shape)} in the place of one of {tuple(b.shape)}')
        if not a.isfinite().all():
            raise ValueError('not all values are finite')
        if b.numel():
            worst = max(worst, ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-3)).item())
    return worst


def require(worst, dtype='float32'):
    if not worst <= TOLERANCE[dtype]:
        raise ValueError(f'differs by {worst:.1e} of the largest value')
    return worst


def counting(backend):
    """A backend of torch.compile that counts the graphs it finished, in its ``graphs``.

    A backend can send dynamo back to read the code again, as for the ``eps`` of a norm, which ``dynamic=True`` leaves
    open and an operator wants as a number: one graph then, compiled at the second attempt.
    """
    run = torch._dynamo.lookup_backend(backend)

    def compiler(graph, inputs):
        function = run(graph, inputs)
        compiler.graphs += 1
        return function

    compiler.graphs = 0
    return compiler


def compiled(name, dynamic, runs, backend='inductor', sizes=SIZES, dtype=torch.float32):
    """Compile, and hold every size against eager.

    Args:
        name (str): Variant.
        dynamic (bool): Leave sizes open; all of ``sizes`` then run in one graph. Otherwise only the first is compiled.
        runs: Pairs of :func:`infer` or :func:`train` and a layout.
        backend: Of torch.compile.
        sizes: Of feature and guide.
        dtype: Of maps and parameters.

    Returns:
        Largest difference, the most graphs that any run made, and the last function.
    """
    worst, graphs = 0.0, 0
    for run, layout in runs:
        module = build(name).to(dtype).train(run is train)
        torch._dynamo.reset()
        counter = counting(backend)
        function = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=counter)
        for size in sizes if dynamic else sizes[:1]:
            inputs = maps(size, FORMATS[layout], dtype=dtype)
            found, expected = (run(f, module, inputs) for f in (function, module))
            worst = max(worst, require(difference(found, expected)))
        graphs = max(graphs, counter.graphs)
    if graphs > 2:
        raise ValueError(f'{graphs} graphs for {len(sizes)} sizes')
    return worst, graphs, function


def training_dtype(name):
    return torch.float64 if name in IN_FLOAT64 else torch.float32


def compile_static(name, timed):
    trained, _, _ = compiled(name, False, [(train, 'channels_last')], sizes=[TIMED], dtype=training_dtype(name))
    worst, _, timed['static'] = compiled(name, False, [(infer, 'nchw')], sizes=[TIMED])
    return f'{max(worst, trained):.0e}'


def compile_dynamic(name, timed):
    # inductor compiles the gradient of any convolution's input anew for every size (torch 2.13), so the graph of the
    # training goes without it
    trained, graphs, _ = compiled(name, True, [(train, 'nchw')], 'aot_eager', dtype=training_dtype(name))
    worst, more, timed['dynamic'] = compiled(name, True, [(infer, 'channels_last')])
    worst, graphs = max(worst, trained), max(graphs, more)
    return f'{worst:.0e}, {graphs} {"graph" if graphs == 1 else "graphs"}'


def exported(name, sizes=SIZES):
    """torch.export with all four sizes open, and the difference at every size."""
    module = build(name).eval()
    open_sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    sizes = [size for size in sizes if min(size[1]) >= SMALLEST_EXPORTED.get(name, 1)]
    with torch.no_grad():
        program = torch.export.export(module, maps(sizes[0]), dynamic_shapes=(open_sizes, open_sizes), strict=False)
        function = program.module()
        return max(require(difference([function(*x)], [module(*x)])) for x in map(maps, sizes))


def export(name, timed):
    smallest = SMALLEST_EXPORTED.get(name)
    return f'{exported(name):.0e}' + (f', sides from {smallest}' if smallest else '')


def onnx(name, timed, sizes=SIZES):
    """ONNX with all four sizes open, and the difference of onnxruntime at every size."""
    import export_onnx

    module = build(name).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'upsampler.onnx')
        export_onnx.export(module, maps(sizes[0]), ('feature', 'guide'), path)
        session = export_onnx.Onnx(path)
        worst = max(require(export_onnx.compare(module, session, maps(size), repeats=0)[0]) for size in sizes)
    timed['onnx'] = session
    return f'{worst:.0e}'


def autocast(name, dtype):
    """Result and gradients inside autocast against float32."""
    module, inputs = build(name), maps(SIZES[0])
    expected = train(module, module, inputs)

    def low(*leaves):
        with torch.autocast('cpu', getattr(torch, dtype)):
            return module(*leaves)

    found = train(low, module, inputs)
    require(difference(found[:1], expected[:1]), dtype)
    if not all(x.isfinite().all() for x in found):
        raise ValueError('gradients are not finite')
    return f'{difference(found[:1], expected[:1]):.0e}'


def bfloat16(name, timed=None):
    return autocast(name, 'bfloat16')


def float16(name, timed=None):
    return autocast(name, 'float16')


def deterministic(name, timed=None):
    """Result and gradients twice, bit for bit, on one thread and on two."""
    module, threads = build(name), torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2, 2):
            torch.set_num_threads(count)
            runs.append(train(module, module, maps(TIMED)))
    finally:
        torch.set_num_threads(threads)
    for first, second in (runs[:2], runs[2:]):
        if not all(torch.equal(a, b) for a, b in zip(first, second)):
            raise ValueError('two runs differ')
    return 'equal'


def times(runs, repeats=5):
    """Milliseconds of inference, medians, in turn."""
    inputs = maps(TIMED)
    seconds = {label: [] for label in runs}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for label, run in runs.items():
                begin = time.perf_counter()
                run(*inputs)
                seconds[label].append(time.perf_counter() - begin)
    return {label: round(1e3 * statistics.median(found[1:]), 2) for label, found in seconds.items()}


#: Column -> what runs it.
CELLS = {
    'compile, static': compile_static,
    'compile, dynamic': compile_dynamic,
    'export': export,
    'ONNX': onnx,
    'autocast bf16': bfloat16,
    'autocast fp16': float16,
    'determinism': deterministic,
}


def row(name, cells=CELLS, timing=True):
    """All cells of one upsampler: what each says, or why it failed; and its times, where they are wanted."""
    found, timed = {}, dict(eager=build(name).eval())
    for column, cell in cells.items():
        try:
            found[column] = cell(name, timed)
        except Exception as error:
            found[column] = f'FAILED: {type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}'
    return found, times(timed) if timing else {}


def render(results):
    """The tables between the marks of the page."""
    lines = [BEGIN, '', '| | ' + ' | '.join(CELLS) + ' |', '| --- ' * (len(CELLS) + 1) + '|']
    for name in VARIANTS:
        cells = results['rows'].get(name, {}).get('cells', {})
        lines.append(f'| {name} | ' + ' | '.join(cells.get(column, 'not run') for column in CELLS) + ' |')
    height, width = TIMED[1]
    lines += [
        '',
        f'Inference from half the size to {height} x {width}, batch 2, {CHANNELS} channels: medians in ms, in turn.',
        'Measured on {cpu}, threads: {threads}, with torch {torch} and onnxruntime {onnxruntime}.'.format_map(
            results['environment']
        ),
        '',
        '| | eager | compiled, static | compiled, dynamic | onnxruntime |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name in VARIANTS:
        timed = results['rows'].get(name, {}).get('times') or {}
        cells = (f'{timed[label]:.1f}' if label in timed else '-' for label in ('eager', 'static', 'dynamic', 'onnx'))
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, '', END])


def write_page(results):
    text = PAGE.read_text()
    head, tail = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    PAGE.write_text(head + render(results) + tail)


def environment():
    import onnxruntime
    from benchmark_ops import processor_name

    return dict(
        cpu=processor_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        onnxruntime=onnxruntime.__version__,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='name', help=f'of {", ".join(VARIANTS)} (default: all)')
    parser.add_argument('--cells', nargs='+', choices=CELLS, help='these columns alone')
    parser.add_argument('--no-times', action='store_true', help='keep the stored times: for a machine that others use')
    parser.add_argument('--render', action='store_true', help='write the page from the stored results')
    args = parser.parse_args()
    for name in args.names:
        if name not in VARIANTS:
            parser.error(f'no upsampler {name!r}; there are {", ".join(VARIANTS)}')
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else dict(rows={})
    if not args.render:
        warnings.simplefilter('ignore')
        if not args.no_times or 'environment' not in results:
            results['environment'] = environment()
        for name in args.names or VARIANTS:
            begin = time.time()
            kept = results['rows'].setdefault(name, dict(cells={}))
            cells = {column: cell for column, cell in CELLS.items() if not args.cells or column in args.cells}
            found, timed = row(name, cells, not args.no_times)
            kept['cells'] = {column: {**kept['cells'], **found}.get(column, 'not run') for column in CELLS}
            kept['times'] = {**kept.get('times', {}), **timed}
            RESULTS.write_text(json.dumps(results, indent=1) + '\n')
            print(f'{name} ({time.time() - begin:.0f} s): {kept}', flush=True)
    results['rows'] = {name: results['rows'][name] for name in VARIANTS if name in results['rows']}
    RESULTS.write_text(json.dumps(results, indent=1) + '\n')
    write_page(results)


if __name__ == '__main__':
    main()
