# SPDX-License-Identifier: Apache-2.0
"""What the source archive and the wheel hold, how they are tagged, and that extras and pinned versions agree."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import sapa_mm

ROOT = Path(__file__).parents[1]
pytest.importorskip('wheel', reason='setuptools before 70 builds wheels with it')

BUILD = 'import sys\nfrom setuptools import build_meta\nprint(build_meta.build_{}(sys.argv[1]))'
# What runs and builds leave in a checkout, and what setuptools would take up.
DIRT = (
    'sapa_mm/_C.abi3.so',
    'sapa_mm/__pycache__/x.cpython-311.pyc',
    'sapa_mm/.mim/model-index.yml',
    'sapa_mm/ops/notes.log',
    'configs/demo/__pycache__/x.cpython-311.pyc',
    'data/camvid/images/1.png',
    'work_dirs/demo/iter_240.pth',
    'tools/last.pth',
    'build/lib/sapa_mm/removed.py',
    'build/lib/sapa_mm/_C.abi3.so',
)


def build(kind, source, out, **environment):
    """Build in ``source``, with what is installed, as pip's ``--no-build-isolation`` does; return the file."""
    done = subprocess.run(
        [sys.executable, '-c', BUILD.format(kind), str(out)], cwd=source, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'PYTHONPATH': '', **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return out / done.stdout.split()[-1]


def repository():
    """The files of the repository, or of the source archive that the tests run from."""
    if (ROOT / '.git').exists() and shutil.which('git'):
        listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return {name for name in listed.split('\0') if (ROOT / name).is_file()}
    listed = (ROOT / 'sapa_mm.egg-info' / 'SOURCES.txt').read_text().splitlines()
    return {name for name in listed if not name.startswith('sapa_mm.egg-info/') and name != 'setup.cfg'}


@pytest.fixture(scope='module')
def files():
    return repository()


@pytest.fixture(scope='module')
def archive(files, tmp_path_factory):
    """The source archive of a checkout in which people have worked."""
    folder = tmp_path_factory.mktemp('checkout')
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in DIRT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('')
    return build('sdist', folder, tmp_path_factory.mktemp('sdist'), SAPA_MM_WITH_OPS='0')


@pytest.fixture(scope='module')
def source(archive, tmp_path_factory):
    """The archive unpacked, with what an earlier build left."""
    folder = tmp_path_factory.mktemp('source')
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    (folder,) = folder.iterdir()
    for platform in ('', f'.linux-x86_64-{sys.implementation.cache_tag}'):
        old = folder / 'build' / f'lib{platform}' / 'sapa_mm'
        old.mkdir(parents=True)
        (old / '_C.abi3.so').write_text('')
        (old / 'removed.py').write_text('')
    return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build(
        'wheel', source, tmp_path_factory.mktemp('wheel'), SAPA_MM_WITH_OPS='0', SAPA_MM_LOCAL_VERSION='pt2.13cpu'
    )


def names_and_metadata(wheel, member):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        (found,) = (name for name in names if name.endswith(f'.dist-info/{member}'))
        return names, message_from_string(packed.read(found).decode())


def test_the_source_archive_is_the_repository(archive, files):
    """All of it, so that tests and pages run from it, and nothing else."""
    # setuptools before 69.3 leaves the dash
    assert archive.name.replace('sapa-mm', 'sapa_mm') == f'sapa_mm-{sapa_mm.__version__}.tar.gz'
    with tarfile.open(archive) as tar:
        packed = {name.partition('/')[2] for name in tar.getnames() if tar.getmember(name).isfile()}
    made = {name for name in packed if name in ('PKG-INFO', 'setup.cfg') or name.startswith('sapa_mm.egg-info/')}
    assert packed - made == files - {'.gitignore'}


def test_the_wheel_is_what_users_run(wheel, files):
    names, _ = names_and_metadata(wheel, 'WHEEL')
    info = {name for name in names if '.dist-info/' in name}
    package = {name for name in files if name.startswith('sapa_mm/')}
    beside = {
        f'sapa_mm/.mim/{name}'
        for name in files
        if name == 'model-index.yml' or name.startswith(('configs/', 'tools/')) and not name.startswith('tools/dev/')
    }
    assert names - info == package | beside | {'sapa_mm/_C.left_out'}
    assert any(name.endswith('LICENSE') for name in info)


def test_a_wheel_without_the_library_is_for_all_machines(wheel):
    assert wheel.name == f'sapa_mm-{sapa_mm.__version__}+pt2.13cpu-py3-none-any.whl'
    _, about = names_and_metadata(wheel, 'WHEEL')
    assert (about['Root-Is-Purelib'], about['Tag']) == ('true', 'py3-none-any')


def test_so_is_one_whose_compilation_failed(source, wheel, tmp_path):
    """After the other wheel, in the same folder: no library of an earlier build, and no word that it was left out."""
    pytest.importorskip('torch')
    failed = build('wheel', source, tmp_path, CXX='/no/such/compiler', FORCE_CUDA='0', SAPA_MM_WITH_OPS='1')
    assert failed.name == f'sapa_mm-{sapa_mm.__version__}-py3-none-any.whl'
    names, about = names_and_metadata(failed, 'WHEEL')
    assert (about['Root-Is-Purelib'], about['Tag']) == ('true', 'py3-none-any')
    assert not [name for name in names if '_C.' in name or 'removed' in name or '.data/' in name]


def test_the_index_shows_whole_links(wheel):
    _, about = names_and_metadata(wheel, 'METADATA')
    address = re.search(r'^Repository = "(.+)"$', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)[1]
    text = about.get_payload()
    links = re.findall(r'\]\(([^)\s]+)', text)
    assert len(links) > 20 and all(link.startswith('https://') for link in links), links
    assert all(link.startswith(f'{address}/raw/') for link in re.findall(r'!\[[^]]*\]\(([^)\s]+)', text))
    assert not re.search(r'<(img|a)\b|^\[[^]]+\]: ', text, re.MULTILINE)  # forms of links that are not rewritten
    urls = dict(entry.split(', ') for entry in about.get_all('Project-URL'))
    assert set(urls) == {'Repository', 'Documentation', 'Changelog', 'Issues'}
    assert all(url.startswith(address) for url in urls.values())
    for name in ('Documentation', 'Changelog'):
        assert (ROOT / urls[name].split('/main/')[1]).exists()


def requirements(*paths):
    """The lines of the files, without those that they include."""
    lines = (line.partition('#')[0].strip() for path in paths for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line and not line.startswith('-r')]


@pytest.mark.parametrize(
    ('extra', 'paths', 'pinned_only'),
    [
        # what a stack is pinned to beside its own packages
        ('onedl', ['requirements/mmcv.txt', 'requirements/demo.txt', 'requirements/test.txt'], {'triton'}),
        ('openmmlab', [f'requirements/classic/{name}.txt' for name in ('mmcv', 'demo', 'test')], {'numpy'}),
        ('onnx', ['requirements/onnx.txt'], set()),
        ('docs', ['requirements/docs.txt'], set()),
        ('test', ['requirements/pytest.txt'], set()),
    ],
)
def test_extras_allow_the_tested_versions(wheel, extra, paths, pinned_only):
    """An extra names what a file of requirements pins, and a range that the pin lies in."""
    requirement = pytest.importorskip('packaging.requirements').Requirement
    _, about = names_and_metadata(wheel, 'METADATA')
    ranges = [requirement(line) for line in about.get_all('Requires-Dist')]
    ranges = {r.name: r.specifier for r in ranges if r.marker and r.marker.evaluate({'extra': extra})}
    pins = {r.name: r.specifier for r in map(requirement, requirements(*paths))}
    assert set(ranges) == set(pins) - pinned_only
    for name, allowed in ranges.items():
        (pin,) = pins[name]
        assert pin.operator == '==' and allowed.contains(pin.version), (name, str(allowed), pin.version)


def test_no_extra_brings_a_second_opencv(wheel):
    """The toolboxes ask for opencv-python; another of its distributions would write into the same folder."""
    _, about = names_and_metadata(wheel, 'METADATA')
    found = {re.match(r'[\w.-]+', line)[0] for line in about.get_all('Requires-Dist') if 'opencv' in line}
    assert found == {'opencv-python'}
