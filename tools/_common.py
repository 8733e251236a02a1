# SPDX-License-Identifier: Apache-2.0
"""What train.py and test.py share."""

import os

# OpenMP reads this when torch is imported. Threads that spin while they wait make training ten times slower as soon as
# anything else wants a core (2 cores, a second training beside: 3.0 s per iteration of the demo, 0.54 s with this).
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import argparse
import os.path as osp
import pickle
import sys
import zipfile
from contextlib import nullcontext

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

#: `default_scope` of the configs that the tools take; matting needs neither toolbox.
TOOLBOXES = ('mmseg', 'mmdet', 'mmengine')


def fail(message):
    """End the program with one line instead of a traceback; 2 is argparse's status for bad input."""
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(2)


def make_parser(description):
    """Return an argument parser with the options of both tools."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file of an mmseg or mmdet model')
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value, lists as key="[a,b]" or key=a,b, without white space',
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
    if args.launcher != 'none' and get_device() == 'cpu':
        fail(f'--launcher {args.launcher} needs a GPU: mmengine cannot start distributed training on a CPU')
    return cfg


def check_data(cfg, dataloaders):
    """Fail with the path and the page to read if what these loaders of ``cfg`` read is not there."""
    from sapa_mm.datasets import check_data_paths

    try:
        check_data_paths(cfg, dataloaders)
    except FileNotFoundError as error:
        fail(error)


def check_checkpoint(path, resume=False):
    """Fail with the file's name unless ``path`` is a checkpoint that can be read; URLs are left to mmengine.

    Args:
        path (str): The checkpoint.
        resume (bool): Whether it must also hold the state of a training run. Defaults to False.
    """
    if '://' in path:
        return
    if not osp.isfile(path):
        fail(f'there is no checkpoint {path}')
    if osp.getsize(path) == 0:
        fail(f'the checkpoint {path} is empty')
    try:
        content = read_checkpoint(path)
    except Exception as error:  # torch raises half a dozen types, KeyError and UnicodeDecodeError among them
        if isinstance(error, pickle.UnpicklingError) and 'nsupported global' in str(error):
            print(
                f'warning: {path} holds more than tensors and plain values; reading it can run code that it brings '
                'along. Go on only if you trust where it comes from.',
                file=sys.stderr,
            )
            return
        reason = (str(error).strip() or 'no reason given').splitlines()[0]
        fail(f'the checkpoint {path} cannot be read: it is damaged or no checkpoint ({type(error).__name__}: {reason})')
    if not isinstance(content, dict) or not content:
        fail(f'{path} is no checkpoint: it holds {type(content).__name__} instead of a dictionary of weights')
    if resume and not {'meta', 'state_dict', 'message_hub'} <= content.keys():
        fail(
            f'{path} holds weights but no training state to resume; to start from its weights use '
            f'--cfg-options load_from={path}'
        )


def read_checkpoint(path):
    """Read a checkpoint that holds tensors, plain values and mmengine's own types; anything else raises."""
    if zipfile.is_zipfile(path):
        # torch reads a flipped bit of a weight without a word; the archive's checksums tell.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f'wrong checksum of {broken}')
    try:
        # mmengine's own files hold a few of its types.
        from mmengine.runner.checkpoint import get_torch_safe_globals

        allowed = torch.serialization.safe_globals(get_torch_safe_globals())
    except (ImportError, AttributeError):  # mmengine 0.10.7 has no list, torch 2.4 takes none
        allowed = nullcontext()
    with allowed:
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


def build_runner(cfg):
    """Build the config's own runner, mmengine's ``Runner`` by default."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
