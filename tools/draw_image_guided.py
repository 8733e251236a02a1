#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw a backbone's feature map before and after image-guided upsampling: which upsampler brings back what?

Side by side: the picture, a map of the backbone, its bilinear interpolation, and what each of --upsamplers makes of it.
Maps are three principal components in red, green and blue, with one basis and one range, those of the backbone's map.

The backbone is that of CONFIG, an mmseg or mmdet config or one whose `model` is a backbone. Its weights come from
CHECKPOINT, or from the config's own `init_cfg` without one.
"""

import argparse
import json
from pathlib import Path

from _common import check_checkpoint, fail, read_checkpoint, read_config, register_toolbox  # before torch: see there

# isort: split
import cv2
import torch
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

#: Upsamplers that are called with (feature, image); those with False need training before they mean anything.
TRAINING_FREE = {
    'ColourAffiliation': True,
    'NAF': False,
    'SAPAStack': False,
    'JBUStack': False,
    'CARAFEStack': False,
}
STACKS = ('SAPAStack', 'JBUStack', 'CARAFEStack')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='picture to look at')
    parser.add_argument('config', help='config of a model with a backbone')
    parser.add_argument('checkpoint', nargs='?', help="its checkpoint (default: the config's own init_cfg)")
    parser.add_argument(
        '--map', type=int, nargs='+', default=[-1], help='maps of the backbone, a row each (default: -1)'
    )
    parser.add_argument(
        '--upsamplers', nargs='+', choices=list(TRAINING_FREE), default=['ColourAffiliation'], metavar='NAME',
        help=f'of {", ".join(TRAINING_FREE)} (default: ColourAffiliation)',
    )  # fmt: skip
    parser.add_argument(
        '--weights', nargs='+', default=[], metavar='NAME=FILE',
        help='weights of upsamplers that need training; without, a map is labelled "untrained"',
    )  # fmt: skip
    parser.add_argument('--options', type=json.loads, default={}, help='JSON: options by name of the upsampler')
    parser.add_argument('--stride', type=int, default=2, help="draw at the picture's size divided by it (default: 2)")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/image_guided.png'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    args = parser.parse_args()
    if args.stride < 1:
        parser.error(f'--stride must be positive, got {args.stride}')
    args.weights = dict(item.partition('=')[::2] for item in args.weights)
    for name in (*args.weights, *args.options):
        if name not in args.upsamplers:
            parser.error(f'{name} is none of --upsamplers')
    return args


def read_backbone(args):
    """Backbone in evaluation mode, and the mean and standard deviation that its pictures are normalised with."""
    cfg = read_config(args.config, args.cfg_options)
    scope = register_toolbox(cfg)
    settings = cfg.model.get('backbone', cfg.model)
    if args.checkpoint is not None:
        check_checkpoint(args.checkpoint)
        settings.pop('init_cfg', None)
    elif not settings.get('init_cfg') and not settings.get('pretrained'):
        fail(f'{args.config} names no weights of its backbone: give a CHECKPOINT')
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(settings)
        if args.checkpoint is None:
            backbone.init_weights()
    if args.checkpoint is not None:
        content = read_checkpoint(args.checkpoint)
        state = content.get('state_dict', content)
        if any(key.startswith('backbone.') for key in state):
            state = {key.removeprefix('backbone.'): x for key, x in state.items() if key.startswith('backbone.')}
        missing = backbone.load_state_dict(state, strict=False).missing_keys
        if missing:
            fail(f'{args.checkpoint} lacks {len(missing)} weights of the backbone, the first is {missing[0]}')
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if 'mean' not in preprocessor:
        fail(f'{args.config} has no data_preprocessor with mean and std')
    return backbone.eval(), preprocessor['mean'], preprocessor['std']


def build(name, channels, args):
    """An upsampler and its title."""
    from sapa_mm.registry import MODELS as OURS

    options = dict(in_channels=channels) if name in STACKS else {}
    upsampler = OURS.build(dict(type=name, **options, **args.options.get(name, {}))).eval()
    if name not in args.weights:
        return upsampler, name if TRAINING_FREE[name] else f'{name}, untrained'
    check_checkpoint(args.weights[name])
    content = read_checkpoint(args.weights[name])
    try:
        upsampler.load_state_dict(content.get('state_dict', content))
    except RuntimeError as error:
        fail(f'{args.weights[name]} does not fit {name}: {str(error).splitlines()[-1].strip()}')
    return upsampler, name


@torch.no_grad()
def main():
    args = parse_args()
    picture = cv2.imread(args.image)
    if picture is None:
        fail(f'{args.image} cannot be read as a picture')
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    backbone, mean, std = read_backbone(args)
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()[None]
    image = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    maps = backbone(image)
    maps = maps if isinstance(maps, (tuple, list)) else (maps,)
    size = [-(-side // args.stride) for side in image.shape[2:]]

    # one image encoder whatever the backbone: mean 0 and variance 1 of ImageNet
    guide = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    rows = []
    for index in args.map:
        if not -len(maps) <= index < len(maps):
            fail(f'--map must be one of the {len(maps)} maps of the backbone, got {index}')
        feature = maps[index]
        row = {f'map {"x".join(map(str, feature.shape[1:]))}': feature}
        row['bilinear'] = F.interpolate(feature, size, mode='bilinear', align_corners=False)
        for name in args.upsamplers:
            upsampler, title = build(name, feature.shape[1], args)
            row[title] = upsampler(feature, guide) if name in STACKS else upsampler(feature, guide, size)
        rows.append({title: x[0] for title, x in row.items()})

    from sapa_mm.visualization import draw_maps

    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_maps(picture, rows).savefig(args.out, dpi=100)
    print(args.out)


if __name__ == '__main__':
    main()
