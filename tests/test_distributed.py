# SPDX-License-Identifier: Apache-2.0
"""Training in several processes, on a CPU by gloo: the same weights, and an end in one line when one is lost.

Each process calls what its tool calls (``start``); only ``test_dist_train`` starts what a user starts.
"""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('cv2')
from tool_helpers import TOOLS, finish, free_port, make_tiny, weights

# The head's norm and the batch are the same whatever the processes see; no augmentation, dropout or dropped path, whose
# random numbers belong to a process. SGD, because a step of Adam does not depend on the size of a gradient, only on its
# sign: rounding of a gradient near 0 would count fully.
PLAIN = """
_base_ = './tiny.py'
model = dict(
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(norm_cfg=dict(_delete_=True, type='GN', num_groups=2), dropout_ratio=0.0))
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='Resize', scale=(32, 32)),
    dict(type='PackSegInputs')]))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9))
train_cfg = dict(max_iters=8, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=4))
randomness = dict(seed=3)
env_cfg = dict(dist_cfg=dict(timeout=60))
"""
# The sum over the batch is taken in another order: 3e-8 measured after eight steps, which move a weight by 2e-2.
TOLERANCE = dict(rtol=0, atol=1e-6)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('distributed')
    make_tiny(folder)
    path = folder / 'plain.py'
    path.write_text(PLAIN)
    return path


def assert_close(folder, expected, step=8):
    state, other = weights(folder / f'iter_{step}.pth'), weights(expected / f'iter_{step}.pth')
    assert state.keys() == other.keys()
    for name in state:
        torch.testing.assert_close(state[name], other[name], **TOLERANCE, msg=lambda text, name=name: f'{name}: {text}')


@pytest.fixture(scope='module')
def alone(config, start):
    """One process with the batch of two."""
    folder = config.parent / 'alone'
    finish(start(1, folder, [config, '--work-dir', folder, '--cfg-options', 'train_dataloader.batch_size=4']), folder)
    return folder


@pytest.fixture(scope='module')
def together(config, start):
    """Two processes."""
    folder = config.parent / 'together'
    finish(start(2, folder, [config, '--work-dir', folder]), folder)
    return folder


def test_two_processes_are_one(alone, together):
    assert_close(together, alone)
    before, after = weights(together / 'iter_4.pth'), weights(together / 'iter_8.pth')
    moved = max((after[name] - before[name]).abs().max() for name in after)
    assert moved > 1000 * TOLERANCE['atol'], 'nothing was learnt that could differ'


@pytest.mark.parametrize('count', [1, 2])
def test_resume_on_another_number_of_processes(count, config, alone, together, start):
    """The total batch stays: weights of the run that never changed, from the middle on."""
    folder = config.parent / f'resumed_on_{count}'
    checkpoint = (together if count == 1 else alone) / 'iter_4.pth'
    line = [config, '--work-dir', folder, '--resume', checkpoint]
    line += ['--cfg-options', f'train_dataloader.batch_size={4 // count}']
    printed = finish(start(count, folder, line), folder)
    assert 'resumed epoch: 0, iter: 4' in printed[0]
    assert_close(folder, alone)


def test_killed_process_ends_all(config, start):
    folder = config.parent / 'killed'
    line = [config, '--work-dir', folder, '--cfg-options', 'train_cfg.max_iters=10000', 'env_cfg.dist_cfg.timeout=600']
    processes = start(2, folder, line)
    end = time.monotonic() + 120
    while not (folder / 'last_checkpoint').exists():
        assert processes[0].is_alive() and time.monotonic() < end, (folder / 'rank0.txt').read_text()[-3000:]
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGKILL)
    printed = finish(processes[:1], folder, status=2, seconds=60)
    last = printed[0].splitlines()[-1]
    assert last.startswith('error: process 0 has lost another one') and '--resume' in last


def test_every_machine_must_see_the_checkpoint(config, together, start):
    """The second machine has a work dir of its own: it would start from nothing and spoil the first."""
    folder = config.parent / 'apart'
    (folder / '0').mkdir(parents=True)
    (folder / '0' / 'iter_4.pth').write_bytes((together / 'iter_4.pth').read_bytes())
    processes = start(2, folder, lambda rank: [config, '--work-dir', folder / str(rank), '--resume'])
    printed = finish(processes, folder, status=2)
    assert all('process 0 would resume iter_4.pth and process 1 nothing' in text for text in printed)


def test_slurm_and_test(config, together, start, tmp_path):
    """What slurm sets is enough, with the machine's name from scontrol; test.py in two processes scores as in one."""
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\n10.0.0.2\\n"\n')
    scontrol.chmod(0o755)
    environment = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_NODELIST='node[1-2]', SLURM_LOCALID='0')
    scores = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        line = [config, together / 'iter_8.pth', '--work-dir', folder]
        printed = finish(start(count, folder, line, 'test', 'slurm', **environment), folder)
        scores.append([text.split()[0] for text in printed[0].split('mIoU: ')[1:]])
    assert scores[0] == scores[1] and len(scores[0]) == 1


@pytest.fixture
def train(monkeypatch, capsys):
    """The one line with which train.py refuses its arguments."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def train(*arguments):
        monkeypatch.setattr('sys.argv', ['train.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            importlib.import_module('train').main()
        assert end.value.code == 2
        return capsys.readouterr().err

    return train


@pytest.mark.skipif(torch.cuda.is_available(), reason='of a CPU alone')
def test_refuses(config, train, tmp_path, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    line = [config, '--work-dir', tmp_path / 'work', '--launcher', 'pytorch']
    assert '--launcher pytorch needs RANK and WORLD_SIZE in the environment' in train(*line)
    sync = train(
        *line, '--cfg-options', 'model.decode_head.norm_cfg._delete_=True', 'model.decode_head.norm_cfg.type=SyncBN'
    )
    assert 'model.decode_head.norm_cfg is SyncBN, which torch computes on GPUs alone' in sync
    assert 'sync_bn asks for SyncBN' in train(*line, '--cfg-options', 'sync_bn=torch')
    assert not (tmp_path / 'work').exists()


def test_dist_train(config, alone):
    """The script, with torch's own launcher."""
    folder = config.parent / 'script'
    environment = dict(os.environ, PORT=str(free_port()), CUDA_VISIBLE_DEVICES='', PYTHON=sys.executable)
    line = ['bash', TOOLS / 'dist_train.sh', config, '2', '--work-dir', folder]
    log = config.parent / 'script.txt'
    with log.open('w') as file:
        process = subprocess.Popen(line, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        process.wait(200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == 0, log.read_text()[-3000:]
    assert_close(folder, alone)


def test_slurm_script(tmp_path):
    """What it asks of srun."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = dict(
        os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16', GPUS_PER_NODE='8', PYTHON='the-python',
        SRUN_ARGS='--time=1:00 --exclusive',
    )  # fmt: skip
    line = ['bash', TOOLS / 'slurm_train.sh', 'part', 'job', 'config.py', '--resume']
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()
    assert printed[:2] == ['-p', 'part'] and printed[-6:] == [
        '-u', str(TOOLS / 'train.py'), 'config.py', '--launcher', 'slurm', '--resume',
    ]  # fmt: skip
    assert {
        '--job-name=job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8', '--kill-on-bad-exit=1', '--time=1:00',
        '--exclusive', 'the-python',
    } <= set(printed)  # fmt: skip
