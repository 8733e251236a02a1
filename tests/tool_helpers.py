# SPDX-License-Identifier: Apache-2.0
"""A tiny mmseg config with its data, and how tests run the tools on it."""

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'

CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255, mean=[127.0] * 3, std=[60.0] * 3),
    backbone=dict(
        type='MixVisionTransformer', embed_dims=8, num_stages=4, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
        drop_path_rate=0.3),
    decode_head=dict(
        type='sapa_mm.GuidedSegformerHead', in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3], channels=8,
        dropout_ratio=0.5, num_classes=3, norm_cfg=dict(type='BN'), align_corners=False,
        upsample_cfg=dict(type='sapa_mm.SAPA', similarity='gated', embed_dims=4)),
    test_cfg=dict(mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(48, 48), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='DATA', img_suffix='.png', metainfo=dict(classes=('a', 'b', 'c')),
    data_prefix=dict(img_path='images', seg_map_path='annotations'))
train_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40, val_interval=15)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='PolyLR', power=1.0, by_epoch=False, begin=0, end=40)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10),
    visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=False)
"""


def make_tiny(folder):
    """Write the config and its data, eight pictures, to ``folder`` and return the config's path."""
    import cv2

    rng = np.random.default_rng(0)
    for kind in ('images', 'annotations'):
        (folder / 'data' / kind).mkdir(parents=True)
    for n in range(8):
        labels = np.kron(rng.integers(0, 3, (6, 6)), np.ones((8, 8), int)).astype(np.uint8)
        image = np.clip(labels[..., None] * 80 + rng.normal(40, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / 'data' / 'images' / f'{n}.png'), image)
        cv2.imwrite(str(folder / 'data' / 'annotations' / f'{n}.png'), labels)
    path = folder / 'tiny.py'
    path.write_text(CONFIG.replace('DATA', str(folder / 'data')))
    return path


def command(tool, *args):
    return [sys.executable, str(TOOLS / tool), *map(str, args)], dict(
        env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(tool, *args, status=0):
    arguments, options = command(tool, *args)
    done = subprocess.run(arguments, timeout=300, **options)
    assert done.returncode == status, done.stdout[-3000:]
    return done.stdout


def start(tool, *args):
    arguments, options = command(tool, *args)
    return subprocess.Popen(arguments, **{**options, 'stdout': subprocess.DEVNULL})


def wait_until(reached, process):
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, 'it ended, or took too long'
        time.sleep(0.005)


def weights(path):
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def call_tool(tool, arguments, environment, log):
    """Run a tool, such as ``'dev/kill_runs'``, in this process, which is there for nothing else, and log its output."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path(log).open('w', buffering=1)
    path = TOOLS / f'{tool}.py'
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *map(str, arguments)]
    importlib.import_module(path.stem).main()


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


#: Where a launcher writes rank and number of processes.
LAUNCHERS = dict(pytorch=('RANK', 'WORLD_SIZE'), slurm=('SLURM_PROCID', 'SLURM_NTASKS'))


@contextmanager
def tool_server():
    """Start tools within a tenth of a second: in forks of a process that has imported the toolboxes.

    Yields:
        Callable: ``start(count, folder, arguments, tool='train', launcher='pytorch', **environment)`` returns ``count``
        processes that write to ``rank{n}.txt`` in ``folder``; ``arguments`` may be a function of the rank.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmseg.datasets', 'mmseg.models', 'sapa_mm.decode_heads', 'tool_helpers'])
    started = []

    def start(count, folder, arguments, tool='train', launcher='pytorch', **environment):
        folder.mkdir(exist_ok=True)
        port = str(free_port())
        rank_name, size_name = LAUNCHERS[launcher]
        processes = []
        for rank in range(count):
            line = arguments(rank) if callable(arguments) else arguments
            if count > 1:
                line = [*line, '--launcher', launcher]
            given = {rank_name: str(rank), size_name: str(count), 'MASTER_PORT': port, **environment}
            log = folder / f'rank{rank}.txt'
            processes.append(context.Process(target=call_tool, args=(tool, line, given, log)))
            processes[-1].start()
        started.extend(processes)
        return processes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CUDA_VISIBLE_DEVICES', '')  # mmengine looks for a device when it is imported
        patch.setenv('OMP_NUM_THREADS', '1')
        ensure_running()
    yield start
    for process in started:
        process.kill()


def finish(processes, folder, status=0, seconds=300):
    """Wait for processes; all must end with ``status``. Returns what each printed."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    printed = [(folder / f'rank{rank}.txt').read_text() for rank in range(len(processes))]
    assert [process.exitcode for process in processes] == [status] * len(processes), printed[0][-3000:]
    return printed
