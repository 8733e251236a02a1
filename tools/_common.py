# SPDX-License-Identifier: Apache-2.0
"""What train.py and test.py share."""

import os

# OpenMP reads this when torch is imported. Threads that spin while they wait make training ten times slower as soon as
# anything else wants a core (2 cores, a second training beside: 3.0 s per iteration of the demo, 0.54 s with this).
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import argparse
import datetime
import errno
import os.path as osp
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from glob import escape as glob_escape
from glob import glob

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

try:
    from mmengine.runner.checkpoint import get_torch_safe_globals
except ImportError:  # mmengine 0.10.7 has no such list
    get_torch_safe_globals = None

#: `default_scope` of the configs that the tools take; matting needs neither toolbox.
TOOLBOXES = ('mmseg', 'mmdet', 'mmengine')
#: Whether torch can be told which types besides tensors may be read: torch 2.5 takes a list.
CAN_ALLOW_TYPES = get_torch_safe_globals is not None and hasattr(torch.serialization, 'safe_globals')
#: Where each launcher writes the rank of a process, the number of processes, and the rank on its machine.
LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
#: What gloo and the store of torch.distributed say when a process that they talk to is gone.
LOST_PROCESS = re.compile('connection (closed|reset|refused)|broken pipe|timed out|not all ranks', re.IGNORECASE)
#: Pictures of each data set that are opened before a training starts.
CHECKED_PICTURES = 16


def fail(message):
    """End the program with one line instead of a traceback; 2 is argparse's status for bad input."""
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(2)


def make_config_parser(description):
    """Return an argument parser that takes a config and changes to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file of an mmseg or mmdet model')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value, lists as key="[a,b]" or key=a,b, without white space',
    )
    return parser


def make_parser(description):
    """Return an argument parser with the options of both tools."""
    parser = make_config_parser(description)
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)')
    parser.add_argument(
        '--trust', action='store_true', help='read a checkpoint even if reading it can run code that it brings along'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    return parser


def read_config(path, options=None, needs=()):
    """Read a config, override its settings with ``options``, and look for the model and the keys that are needed."""
    if not osp.isfile(path):
        fail(f'there is no config file {path}')
    cfg = Config.fromfile(path)
    if options is not None:
        cfg.merge_from_dict(options)
    missing = [key for key in ('model', *needs) if cfg.get(key) is None]
    if missing:
        fail(f'{path} has no {", ".join(missing)}')
    if cfg.get('default_scope') not in TOOLBOXES:
        fail(f'{path}: default_scope is {cfg.get("default_scope")!r}, expected one of {", ".join(TOOLBOXES)}')
    return cfg


def load_config(args, needs):
    """Read the config that ``args`` names, apply the options of both tools, and look for the keys that one needs."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options, needs)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def check_data(cfg, dataloaders):
    """Fail with the path and the page to read if what these loaders of ``cfg`` read is not there."""
    from sapa_mm.datasets import check_data_paths

    try:
        check_data_paths(cfg, dataloaders)
    except FileNotFoundError as error:
        fail(error)


def check_samples(cfg, dataloaders):
    """Fail with the first fault that a look at a few pictures of each data set finds; the first process looks."""
    from sapa_mm.datasets.faults import check_pictures, read_data_parts

    if cfg.launcher != 'none' and int(os.environ.get(LAUNCHERS[cfg.launcher][0], 0)) > 0:
        return
    for part in read_data_parts(cfg, dataloaders):
        for faults in (part.faults, *check_pictures(part, cfg, limit=CHECKED_PICTURES)):
            if faults:
                fail(f'{faults[0]}. tools/check_data.py lists all that is wrong; --no-data-check trains nevertheless')


def check_checkpoint(path, resume=False, trust=False):
    """Fail with the file's name unless ``path`` is a checkpoint that can be read; URLs are left to mmengine.

    Args:
        path (str): The checkpoint.
        resume (bool): Whether it must also hold the state of a training run. Defaults to False.
        trust (bool): Whether a file that can run code when it is read may pass. Defaults to False.
    """
    if '://' in path:
        return
    reason = find_fault(path, resume, trust)
    if reason is not None:
        fail(reason)


def find_fault(path, resume=False, trust=False):
    """What is wrong with a checkpoint, as one line with its path, or None; see :func:`check_checkpoint`."""
    if osp.isdir(path):
        return f'{path} is a folder, as FSDP writes; mmengine cannot resume those, see docs/distributed.md'
    if not osp.isfile(path):
        return f'there is no checkpoint {path}'
    if osp.getsize(path) == 0:
        return f'the checkpoint {path} is empty'
    try:
        content = read_checkpoint(path)
    except Exception as error:  # torch raises half a dozen types, KeyError and UnicodeDecodeError among them
        # torch 2.1 says "Unsupported class", later ones "Unsupported global"
        if isinstance(error, pickle.UnpicklingError) and re.search('nsupported (class|global)', str(error)):
            danger = (
                f'the checkpoint {path} holds more than tensors and plain values: reading it can run code of its own'
            )
            if trust:
                return None
            if CAN_ALLOW_TYPES:
                return f'{danger}. If you trust where it comes from, add --trust'
            # Every checkpoint of a training holds types of mmengine's, so here nothing tells a foreign one from ours.
            print(f'warning: {danger}. Go on only if you trust where it comes from.', file=sys.stderr)
            return None
        reason = (str(error).strip() or 'no reason given').splitlines()[0]
        return (
            f'the checkpoint {path} cannot be read: it is damaged or no checkpoint ({type(error).__name__}: {reason})'
        )
    if not isinstance(content, dict) or not content:
        return f'{path} is no checkpoint: it holds {type(content).__name__} instead of a dictionary of weights'
    if resume and not {'meta', 'state_dict', 'message_hub'} <= content.keys():
        return (
            f'{path} holds weights but no training state to resume; to start from its weights use '
            f'--cfg-options load_from={path}'
        )
    return None


def find_resumable(work_dir, trust=False):
    """The newest whole checkpoint of a training in ``work_dir``, or None where none was ever written.

    The file ``last_checkpoint`` may name one that a kill or a full disk has cut short or taken away. So all are looked
    at, the newest first, and every one that is passed over is named with the reason.
    """
    last = find_latest_checkpoint(work_dir)  # it may lie elsewhere: CheckpointHook has an out_dir
    folders = dict.fromkeys(filter(None, (osp.dirname(last) if last else None, work_dir)))
    steps = {}
    for folder in folders:
        for path in glob(osp.join(glob_escape(folder), '*.pth')):
            step = re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', osp.basename(path))
            if step:
                steps.setdefault(path, int(step[1]))
    if last and last not in steps:
        steps[last] = float('inf')
    faults = []
    for path in sorted(steps, key=steps.get, reverse=True):
        fault = find_fault(path, resume=True, trust=trust)
        if fault is None:
            for line in faults:
                print(f'warning: passed over: {line}', file=sys.stderr)
            return path
        faults.append(fault)
    if faults:
        fail(f'no checkpoint in {work_dir} can be resumed: {"; ".join(faults)}')
    return None


def read_checkpoint(path):
    """Read a checkpoint that holds tensors, plain values and mmengine's own types; anything else raises."""
    if zipfile.is_zipfile(path):
        # torch reads a flipped bit of a weight without a word; the archive's checksums tell.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f'wrong checksum of {broken}')
    # mmengine's own files hold a few of its types.
    with torch.serialization.safe_globals(get_torch_safe_globals()) if CAN_ALLOW_TYPES else nullcontext():
        return torch.load(path, map_location='cpu', weights_only=True)


def register_toolbox(cfg):
    """Import the toolbox that the config's ``default_scope`` names, if it is one, and return that scope."""
    scope = cfg.default_scope
    if scope == 'mmengine':
        return scope
    try:
        if scope == 'mmdet':
            from mmdet.utils import register_all_modules, setup_cache_size_limit_of_dynamo

            setup_cache_size_limit_of_dynamo()
        else:
            from mmseg.utils import register_all_modules
        register_all_modules(init_default_scope=False)
    except ImportError as error:
        fail(f'{scope} cannot be imported ({error}); `python -m sapa_mm.doctor` says what to do')
    return scope


def build_runner(cfg, derive=None):
    """Build the config's own runner, mmengine's ``Runner`` by default, or what ``derive`` makes of its class."""
    kind = RUNNERS.get(cfg.runner_type) if 'runner_type' in cfg else Runner
    if derive is not None and kind is not None:
        return derive(kind).from_cfg(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def join_on_cpu(cfg):
    """Join the other processes by gloo and keep the model's wrapper off devices; on GPUs mmengine's Runner does both.

    Reads what the launcher put into the environment, and ``env_cfg.dist_cfg.timeout`` of the config, in seconds.
    """
    rank, size, local_rank = LAUNCHERS[cfg.launcher]
    os.environ.setdefault(local_rank, '0')
    missing = [name for name in (rank, size) if name not in os.environ]
    if missing:
        fail(
            f'--launcher {cfg.launcher} needs {" and ".join(missing)} in the environment, which its launcher sets; '
            'docs/distributed.md has the commands'
        )
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = ['scontrol', 'show', 'hostnames', os.environ.get('SLURM_NODELIST', '')]
        try:
            done = subprocess.run(hosts, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f'scontrol cannot tell the first machine ({error}); name it in MASTER_ADDR')
        os.environ['MASTER_ADDR'] = done.stdout.split()[0]
    os.environ.update(RANK=os.environ[rank], WORLD_SIZE=os.environ[size], LOCAL_RANK=os.environ[local_rank])
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    options = {} if timeout is None else dict(timeout=datetime.timedelta(seconds=timeout))
    torch.distributed.init_process_group('gloo', **options)
    # As the Runner wraps a model, but for device_ids.
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or wrapper, device_ids=None)


def refuse_sync_bn_on_cpu(cfg):
    """Fail with the key of the first SyncBN of a training of several processes on a CPU."""
    if cfg.launcher == 'none' or get_device() != 'cpu':  # alone, mmengine puts BN in its place
        return
    if cfg.get('sync_bn'):
        fail('sync_bn asks for SyncBN, which torch computes on GPUs alone; on a CPU: --cfg-options sync_bn=None')
    for key in _keys_of_type(cfg.model, ('SyncBN', 'MMSyncBN'), 'model'):
        fail(
            f'{key} is SyncBN, which torch computes on GPUs alone. On a CPU take GN, or BN with statistics of each '
            f'process alone: --cfg-options {key}.type=BN'
        )


def _keys_of_type(part, types, key):
    if isinstance(part, Mapping):
        if part.get('type') in types:
            yield key
        for name, value in part.items():
            yield from _keys_of_type(value, types, f'{key}.{name}')
    elif isinstance(part, (list, tuple)):
        for index, value in enumerate(part):
            yield from _keys_of_type(value, types, f'{key}.{index}')


@contextmanager
def processes(cfg):
    """Join the processes of a run for as long as it takes; one line where another of them is lost."""
    if cfg.launcher != 'none' and get_device() == 'cpu':
        join_on_cpu(cfg)
    try:
        yield
    except RuntimeError as error:
        lost = LOST_PROCESS.search(str(error))
        if not is_distributed() or not lost:
            raise
        fail(
            f'process {get_rank()} has lost another one, which was killed or failed ({lost[0].lower()}). '
            'Train again with --resume: it goes on from the last checkpoint'
        )
    if is_distributed():
        torch.distributed.destroy_process_group()


def check_same_start(cfg):
    """Fail if the processes of a run start from different checkpoints, as without a common work dir."""
    starts = all_gather_object(osp.basename(cfg.get('load_from') or '') if cfg.get('resume') else '')
    other = next((rank for rank, start in enumerate(starts) if start != starts[0]), None)
    if other is not None:
        fail(
            f'process 0 would resume {starts[0] or "nothing"} and process {other} {starts[other] or "nothing"}: all '
            f'machines must see the same {cfg.work_dir}'
        )


@contextmanager
def disk_errors_in_one_line():
    """End the program with one line where the disk is full, read-only or not ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        place = f'{error.filename}: ' if error.filename else 'the disk cannot be written: '
        fail(f'{place}{error.strerror}. What was saved before is whole; --resume goes on from there')
