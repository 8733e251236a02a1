#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train the model of an mmseg or mmdet config."""

from _common import (
    build_runner,
    check_checkpoint,
    check_data,
    check_same_start,
    check_samples,
    disk_errors_in_one_line,
    fail,
    find_resumable,
    load_config,
    make_parser,
    processes,
    refuse_sync_bn_on_cpu,
    register_toolbox,
)
from mmengine.device import get_device


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the newest whole one in the work dir, if there is one',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (bfloat16 on a CPU)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--no-data-check',
        action='store_false',
        dest='data_check',
        help='do not look at annotation files and a few pictures of each data set before',
    )
    parser.add_argument(
        '--brief', action='store_true', help='show a line an interval, and a bar; all else goes to the log file alone'
    )
    return parser.parse_args()


def set_amp(cfg, wanted):
    """Turn mixed precision on if ``wanted``, and choose the wrapper that fits the device."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if wanted and kind == 'OptimWrapper':
        kind = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif wanted and kind not in ('AmpOptimWrapper', 'sapa_mm.CPUAmpOptimWrapper'):
        fail(f'--amp needs a config with optim_wrapper.type OptimWrapper, not {kind}')
    if kind == 'AmpOptimWrapper' and get_device() == 'cpu':
        # mmengine's wrapper refuses to work on a CPU; bfloat16 has the range of float32 and needs no loss scale.
        kind = 'sapa_mm.CPUAmpOptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
    wrapper.type = kind


def set_resume(cfg, resume, trust):
    """Choose the checkpoint to start from, and make sure that it can be read before anything is written."""
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from = find_resumable(cfg.work_dir, trust)
        cfg.resume = cfg.load_from is not None
    elif cfg.get('load_from') is not None:
        check_checkpoint(cfg.load_from, cfg.get('resume', False), trust)


def set_hooks(cfg):
    """Let a run be resumed exactly, from a checkpoint that is whole."""
    hooks = cfg.get('custom_hooks') or []
    if all(hook['type'] != 'sapa_mm.ExactResumeHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='sapa_mm.ExactResumeHook')]
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
    if checkpoint is not None and checkpoint['type'] == 'CheckpointHook':
        checkpoint['type'] = 'sapa_mm.SafeCheckpointHook'


def main():
    args = parse_args()
    derive = None
    if args.brief:
        import _brief

        derive = _brief.start()
    cfg = load_config(args, needs=('train_dataloader', 'train_cfg', 'optim_wrapper'))
    refuse_sync_bn_on_cpu(cfg)
    loaders = ('train_dataloader', 'val_dataloader')
    check_data(cfg, loaders)
    set_resume(cfg, args.resume, args.trust)
    set_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if not {'enable', 'base_batch_size'} <= cfg.get('auto_scale_lr', {}).keys():
            fail(f'--auto-scale-lr needs auto_scale_lr.enable and auto_scale_lr.base_batch_size in {args.config}')
        cfg.auto_scale_lr.enable = True
    set_hooks(cfg)
    register_toolbox(cfg)
    if args.data_check:
        check_samples(cfg, loaders)
    with disk_errors_in_one_line(), processes(cfg):
        runner = build_runner(cfg, derive)
        check_same_start(cfg)
        runner.train()


if __name__ == '__main__':
    main()
