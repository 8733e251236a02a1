# SPDX-License-Identifier: Apache-2.0
"""Trainings of a few iterations: with each of mmengine's options, and killed again and again."""

import os

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('cv2')
from mmengine.utils import digit_version
from tool_helpers import finish, make_tiny, weights

BASE = """
_base_ = './tiny.py'
custom_imports = dict(imports='training_helpers')
custom_hooks = [dict(type='PrintDtypeHook')]
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=1))
train_dataloader = dict(batch_size=2)
randomness = dict(seed=3)
"""
# what a user writes into a config
KINDS = {
    'plain': '',
    'bfloat16': "optim_wrapper = dict(type='AmpOptimWrapper')",  # a CPU's own in its place
    'float16': "optim_wrapper = dict(type='CPUFloat16OptimWrapper')",
    'ema': "custom_hooks.append(dict(type='EMAHook'))",
    'accumulation': 'optim_wrapper = dict(accumulative_counts=2)',
    'with_cp': 'model = dict(backbone=dict(with_cp=True))',
    'compile': "compile = dict(backend='eager')",  # the default backend takes minutes to compile
}


@pytest.fixture(scope='module')
def train(tmp_path_factory, start):
    """Train with one of the kinds; returns what was printed and the weights after each iteration."""
    folder, done = tmp_path_factory.mktemp('training'), {}
    make_tiny(folder)

    def train(kind):
        if kind not in done:
            config = folder / f'{kind}.py'
            config.write_text(f'{BASE}{KINDS[kind]}\n')
            work = folder / kind
            (printed,) = finish(start(1, work, [config, '--work-dir', work]), work)
            done[kind] = printed, [weights(work / f'iter_{step}.pth') for step in range(1, 5)]
        return done[kind]

    return train


def distance(one, other):
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize('kind', KINDS)
def test_trains(kind, train):
    """It learns, validates, and what it upsampled had the type that was asked for."""
    if kind == 'float16' and digit_version(torch.__version__) < digit_version('2.4'):
        pytest.skip('torch has no float16 autocast on a CPU before')
    if kind == 'compile' and 'SAPA_MM_SLOW_TESTS' not in os.environ:
        pytest.skip('40 s of tracing; SAPA_MM_SLOW_TESTS=1 runs it')
    printed, states = train(kind)
    assert all(x.isfinite().all() for x in states[-1].values())
    assert distance(states[0], states[-1]) > 1e-4 and 'mIoU: ' in printed
    dtypes = {line.split()[1] for line in printed.splitlines() if line.startswith('upsampled')}
    assert kind == 'compile' or dtypes == {f'torch.{kind}' if 'float' in kind else 'torch.float32', 'torch.float32'}


def test_with_cp_changes_no_bit(train):
    assert distance(train('with_cp')[1][-1], train('plain')[1][-1]) == 0


def test_kills_lose_nothing(tmp_path, start):
    """A small run of tools/dev/kill_runs.py: one kill at any time, two while a checkpoint is written and removed."""
    config = make_tiny(tmp_path)
    line = [config, '--kills', 3, '--keep', 1, '--iterations', 8, '--interval', 2, '--work-dir', tmp_path / 'kills']
    (printed,) = finish(start(1, tmp_path / 'log', line, 'dev/kill_runs'), tmp_path / 'log')
    total = next(line for line in printed.splitlines() if ' all ' in line)
    assert [cell.strip() for cell in total.strip('│').split('│')][1:] == ['all', '3', '3', '0']
    assert ' 0 left more checkpoints than were to be kept' in printed
