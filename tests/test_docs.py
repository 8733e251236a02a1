# SPDX-License-Identifier: Apache-2.0
"""What the pages show is run, or at least read where a block's title says so."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md')), *sorted((ROOT / 'configs').glob('*/README.md'))]
READ, NOT_RUN = 'Read by the tests', 'Not run by the tests'


def name(path):
    return str(path.relative_to(ROOT))


def code_blocks(page):
    return re.findall(r'^```python\n(.*?)^```', (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Title and lines of the blocks of commands; a line that goes on is one."""
    blocks = re.findall(r'^```bash(?: title="([^"]*)")?\n(.*?)^```', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [
        (title, [line for line in text.replace('\\\n', ' ').splitlines() if line and not line.startswith('#')])
        for title, text in blocks
    ]


def run(code):
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_code_of_the_readme():
    """The five lines in a process of their own, and the definition against the operator."""
    torch = pytest.importorskip('torch')
    from sapa_mm.ops import point_affiliation

    first, *_, definition = code_blocks('../README.md')
    assert len(first.strip().splitlines()) <= 6
    run(first + '\nassert out.shape == (1, 256, 32, 32)')
    page = {}
    exec(compile(definition, 'README.md', 'exec'), page)
    query, key, value = torch.randn(2, 3, 7, 9), torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(page['point_affiliation'](query, key, value), point_affiliation(query, key, value))


@pytest.mark.parametrize(('which', 'toolbox', 'count'), [(1, 'mmdet', 3), (2, 'mmseg', 6)])
def test_configs_of_the_readme(which, toolbox, count, tmp_path):
    """Both whole configs, saved under the names that the page gives, build models with upsamplers."""
    pytest.importorskip(f'{toolbox}.models')
    pytest.importorskip('mmdet.models')
    from mmengine import Config, DefaultScope
    from mmengine.registry import MODELS

    from sapa_mm.upsamplers import SAPA

    text = (ROOT / 'README.md').read_text()
    path = tmp_path / re.findall(r'Save it as `(\w+\.py)`', text)[which - 1]
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    path.write_text(code_blocks('../README.md')[which])
    cfg = Config.fromfile(path)
    assert cfg.default_scope == toolbox
    with DefaultScope.overwrite_default_scope(toolbox):
        model = MODELS.build(cfg.model)
    assert sum(isinstance(module, SAPA) for module in model.modules()) == count


def test_figures_of_the_readme():
    """The first table: reported figures are those of the metafiles, costs are counted, times measured."""
    text = (ROOT / 'README.md').read_text()
    rows = [[cell.strip() for cell in row.split('|')[1:-1]] for row in re.findall(r'^\|.+\|.+\.\d\d \|$', text, re.M)]
    assert [row[0] for row in rows[1:]] == ['CARAFE', 'FADE', 'DySample+', 'SAPA-B', 'SAPA-G', 'SAPA-D']
    reported = {}
    for column, folder, metric, start in (
        (1, 'segformer', 'mIoU', 'segformer_mit-b1'),
        (2, 'mask2former', 'mIoU', 'mask2former'),
        (3, 'faster_rcnn', 'AP', 'faster-rcnn_r50'),
    ):
        for model in yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']:
            if model['Name'].startswith(start):
                upsampler = model['Metadata']['Upsampler'].split(',')[0]
                upsampler = 'as it was' if upsampler in ('nearest', 'bilinear') else upsampler
                found = [r['Metrics'].get(metric) for r in model.get('Results', []) if r['Kind'] == 'reported']
                reported.setdefault((upsampler, column), set()).update(found)
    costs = (DOCS / 'cost_tables.md').read_text().partition('## SegFormer-B1')[2].partition('\n## ')[0]
    times = (DOCS / 'benchmarks' / 'README.md').read_text().partition('## All upsamplers')[2]
    for upsampler, *figures, parameters, macs, time in rows:
        for column, figure in enumerate(figures, 1):
            assert figure == '-' or float(figure) in reported[upsampler, column], (upsampler, figure, reported)
        if upsampler != 'as it was':
            assert f'| {upsampler} | {parameters[2:]} | {macs[2:]} |' in costs
            assert re.search(rf'^\| {re.escape(upsampler)} \|(.*)$', times, re.M)[1].split('|')[3].strip() == time


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links(page):
    """What a page links to in the repository is there, and so is the heading."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r'\]\((?!\w+:)([^)\s]+)\)', text):
        path, _, anchor = link.partition('#')
        target = (page.parent / path) if path else page
        assert target.exists(), f'{name(page)} links to {link}'
        if anchor:
            headings = re.findall(r'^#+ (.+)$', target.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}, link


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_are_run_or_marked(page):
    """A block is run below or has a title; what it names as tools, configs, options and targets is there."""
    for title, lines in commands(page):
        assert title in (READ, NOT_RUN) or (name(page), lines) in RUN, (name(page), lines)
        for line in lines if title != NOT_RUN else ():
            check_command(shlex.split(line, comments=True))


def check_command(words):
    if words[0] == 'make':
        assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE), words
    elif words[0] == 'source':
        assert words == ['source', '.venv/bin/activate']
    else:
        module = words[:2] == ['python', '-m']
        tool = ROOT / (words[2].replace('.', '/') + '.py' if module else words[words[0] == 'python'])
        assert tool.is_file(), words
        known = tool.read_text() + (ROOT / 'tools' / '_common.py').read_text()
        for word in words:
            if word.startswith('--'):
                assert word == '--help' or f"'{word}'" in known, words
            if word.startswith('configs/'):
                assert (ROOT / word).is_file(), words


DOCTOR = 'docs/quickstart.md', ['python -m sapa_mm.doctor']
FLOPS = (
    'docs/quickstart.md',
    [
        'python tools/get_flops.py configs/demo/segformer_mit-b0_demo.py    '
        '--cfg-options model.decode_head.upsample_cfg.type=sapa_mm.FADE'
    ],
)
TRAIN = (
    'README.md',
    [
        'python tools/make_demo_dataset.py',
        'python tools/train.py my_segformer.py',
        'python tools/test.py my_segformer.py work_dirs/my_segformer/iter_240.pth --show-dir painted',
    ],
)
RUN = [DOCTOR, FLOPS, TRAIN]


@pytest.mark.parametrize('block', RUN, ids=['doctor', 'get_flops', 'train_and_test'])
def test_commands(block, tmp_path):
    """The blocks without a title, as they stand; a training of two iterations instead of 240."""
    pytest.importorskip('mmseg')
    pytest.importorskip('cv2')
    page, lines = block
    assert lines in [found for _, found in commands(ROOT / page)]
    for folder in ('configs', 'tools'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / 'my_segformer.py').write_text(code_blocks('../README.md')[2])
    for line in lines:
        words = shlex.split(line)
        if 'tools/train.py' in words:
            words += ['--cfg-options', 'train_cfg.max_iters=2', 'train_dataloader.batch_size=2', 'val_cfg=None']
            words += ['val_dataloader=None', 'val_evaluator=None']
        if 'tools/test.py' in words:
            words += ['--cfg-options', 'test_dataloader.dataset.indices=4']
        words = [word.replace('iter_240', 'iter_2') for word in words]
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        # the doctor's status says whether something is missing
        assert done.returncode == 0 or block is DOCTOR, done.stdout[-2000:] + done.stderr[-3000:]
        assert 'Traceback' not in done.stderr, done.stderr[-3000:]
    if block is TRAIN:
        assert (tmp_path / 'work_dirs' / 'my_segformer' / 'iter_2.pth').exists()
        assert len(list((tmp_path / 'painted').rglob('*.png'))) == 4


@pytest.mark.parametrize('notebook', ['plain_torch', 'swap_in_a_config'])
def test_notebooks(notebook, monkeypatch):
    """Their code runs from its folder; results are not stored."""
    pytest.importorskip('matplotlib' if notebook == 'plain_torch' else 'mmseg')
    if notebook == 'swap_in_a_config':
        pytest.importorskip('mmdet.models')
    path = DOCS / 'notebooks' / f'{notebook}.ipynb'
    cells = [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'code']
    assert not any(cell['outputs'] or cell['execution_count'] for cell in cells)
    monkeypatch.chdir(path.parent)
    before = set(path.parent.iterdir())
    exec(compile('\n'.join(''.join(cell['source']) for cell in cells), path.name, 'exec'), {})
    assert set(path.parent.iterdir()) == before


@pytest.mark.parametrize('page', ['quickstart.md', 'where.md'])
def test_code_of_the_pages(page):
    for block in code_blocks(page):
        run(block)


def test_types_of_the_drawings():
    """The line below each drawing names a registered type that takes an ``upsample_cfg``."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet.models')
    from sapa_mm.registry import MODELS

    lines = re.findall(rf'^```python title="{READ}"\n(.*?)^```', (DOCS / 'where.md').read_text(), re.M | re.S)
    assert len(lines) == len(list((DOCS / 'drawings').iterdir()))
    for line in lines:
        page = {}
        exec(line, page)
        (cfg,) = (value for value in page.values() if isinstance(value, dict) and 'upsample_cfg' in value)
        kind = MODELS.get(cfg['type'])
        assert kind is not None and 'upsample_cfg' in kind.__init__.__code__.co_varnames, cfg


def test_drawings_are_current(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
    from architecture_drawings import OUT, drawings

    assert {path.stem: path.read_text() for path in OUT.iterdir()} == {n: d.svg() for n, d in drawings().items()}


def test_one_address():
    """The repository's address is the same in the package's metadata, on the site and where it is cloned."""
    address = re.search(r'^Repository = "(.+)"$', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)[1]
    assert yaml.safe_load(re.sub(r'!ENV', '', (ROOT / 'mkdocs.yml').read_text()))['repo_url'] == address
    for page in ('README.md', 'docs/quickstart.md'):
        assert f'git clone {address}\n' in (ROOT / page).read_text()


@pytest.fixture
def registry():
    """The registry, without what a page adds to it."""
    pytest.importorskip('mmseg')
    # all that register: what does so first within a test would be forgotten after it
    import sapa_mm.backbones
    import sapa_mm.decode_heads
    import sapa_mm.necks
    import sapa_mm.upsamplers  # noqa: F401
    from sapa_mm.registry import MODELS

    before = dict(MODELS.module_dict)
    yield MODELS
    MODELS.module_dict.clear()
    MODELS.module_dict.update(before)


def test_new_upsampler(registry):
    """The worked example is short, and the page's own use of it works; then in a head, through its file's name."""
    pytest.importorskip('mmseg')
    torch = pytest.importorskip('torch')
    example, use = code_blocks('new_upsampler.md')
    assert len(example.splitlines()) < 30
    page = {}
    exec(compile(example, 'new_upsampler.md', 'exec'), page)
    exec(compile(use, 'new_upsampler.md', 'exec'), page)

    upsampler = registry.build(dict(type='sapa_mm.GuideKernels', in_channels=4, guide_channels=6))
    assert upsampler.predict.weight.std() < 0.002
    feature, guide = torch.randn(1, 4, 3, 5), torch.randn(1, 6, 5, 9)
    assert upsampler(feature, guide).shape == (1, 4, 5, 9)
    with pytest.raises(ValueError, match='GuideKernels was built for a guide of 6 channels, got 4'):
        upsampler(feature, feature)
    with pytest.raises(TypeError, match="GuideKernels has no option 'kernelsize'; did you mean 'kernel_size'"):
        registry.build(
            dict(
                type='sapa_mm.GuidedFPN',
                in_channels=[4, 4],
                out_channels=4,
                num_outs=2,
                upsample_cfg=dict(type='sapa_mm.GuideKernels', kernelsize=3),
            )
        )


def test_image_guided(registry):
    """The page's code, and the table's parameters."""
    pytest.importorskip('mmseg')
    torch = pytest.importorskip('torch')
    use, config = code_blocks('image_guided.md')
    page = {}
    exec(compile(use, 'image_guided.md', 'exec'), page)
    assert page['finer'].shape == (1, 384, 112, 112)
    exec(compile(config, 'image_guided.md', 'exec'), page)
    (out,) = registry.build(page['model']['backbone'])(torch.randn(1, 3, 64, 96))
    assert out.shape == (1, 512, 16, 24)
    rows = re.findall(r'^\| `(sapa_mm\.\w+)` \|.*?\| ([\d,]+) \|', (DOCS / 'image_guided.md').read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, count in rows:
        module = registry.build(dict(type=name, **({'in_channels': 384} if name.endswith('Stack') else {})))
        assert sum(p.numel() for p in module.parameters()) == int(count.replace(',', '')), name
