#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Test a checkpoint of an mmseg or mmdet config."""

from copy import deepcopy

from _common import (
    build_runner,
    check_checkpoint,
    check_data,
    fail,
    load_config,
    make_parser,
    processes,
    register_toolbox,
)
from mmengine.config import ConfigDict


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='keep the predictions: FILE.pkl for a pickle, or (mmseg) a folder for label maps')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for painted images')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds to show each prediction (default: 2)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def set_visualization(cfg, args, scope):
    """Paint predictions, each toolbox in its own place."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        fail(f'--show and --show-dir need a visualization hook in default_hooks of {args.config}')
    hook['draw'] = True
    if scope == 'mmseg':
        hook['interval'] = 1  # mmseg 1.2 paints every 50th otherwise
    if args.show:
        hook['show'] = True
        hook['wait_time'] = args.wait_time
    if args.show_dir and scope == 'mmdet':
        hook['test_out_dir'] = args.show_dir
    elif args.show_dir:
        cfg.visualizer['save_dir'] = args.show_dir


def set_tta(cfg, args, scope):
    """Wrap the model for test-time augmentation; mmdet has a default for it, mmseg has not."""
    if scope == 'mmdet':
        cfg.setdefault(
            'tta_model',
            dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
        )
        if 'tta_pipeline' not in cfg:
            dataset = cfg.test_dataloader.dataset
            while 'dataset' in dataset:
                dataset = dataset['dataset']
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
            cfg.tta_pipeline = deepcopy(dataset.pipeline)
            cfg.tta_pipeline[-1] = dict(
                type='TestTimeAug',
                transforms=[
                    [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
                    [dict(type='PackDetInputs', meta_keys=keys)],
                ],
            )
    elif 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        fail(f'--tta needs tta_model and tta_pipeline in {args.config}')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def set_out(cfg, out, scope):
    """Keep the predictions: a pickle by an additional evaluator, label maps by mmseg's own."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if out.endswith(('.pkl', '.pickle')):
        dump = 'DumpDetResults' if scope == 'mmdet' else 'DumpResults'
        evaluators = [*evaluators, dict(type=dump, out_file_path=out)]
    elif scope == 'mmdet':
        fail(f'--out of an mmdet config must end in .pkl or .pickle, got {out}')
    else:
        evaluators[0]['output_dir'] = out
    cfg.test_evaluator = evaluators


def main():
    args = parse_args()
    cfg = load_config(args, needs=('test_dataloader', 'test_cfg', 'test_evaluator'))
    check_data(cfg, ('test_dataloader',))
    check_checkpoint(args.checkpoint, trust=args.trust)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    scope = register_toolbox(cfg)
    if args.show or args.show_dir:
        set_visualization(cfg, args, scope)
    if args.tta:
        set_tta(cfg, args, scope)
    if args.out is not None:
        set_out(cfg, args.out, scope)
    with processes(cfg):
        build_runner(cfg).test()


if __name__ == '__main__':
    main()
