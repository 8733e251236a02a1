#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint of a published implementation into one for a config of this package.

The key maps are those of the modules themselves (`_from_published_layout`), which `load_state_dict` uses too, and that
of the SegFormer authors' MiT backbone. Every weight of the model must come from the checkpoint, with its shape, and
every weight of the checkpoint must have a place or be one that the maps know to be of no use; otherwise nothing is
written and the lists say what does not fit. Files are read with `weights_only=True`: no code in them runs.
"""

import argparse
import os
import os.path as osp
import re
from dataclasses import dataclass, field

from _common import fail, read_checkpoint, read_config, register_toolbox  # before torch: sets how its threads wait

# isort: split
import torch
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope


@dataclass
class Conversion:
    """What became of each weight of a published checkpoint; keys of the checkpoint unless said otherwise."""

    state_dict: dict  #: by keys of the model
    sources: dict  #: where each of them comes from, a tuple of keys
    dropped: list  #: taken out by the key maps: constants and layers that no forward uses
    left_over: list = field(default_factory=list)  #: without a place in the model
    missing: list = field(default_factory=list)  #: keys of the model that nothing maps to
    misfits: list = field(default_factory=list)  #: lines on other shapes, or another meaning

    @property
    def fits(self):
        return not (self.left_over or self.missing or self.misfits)


def convert(model, published):
    """Move the weights of a published checkpoint to the names and shapes of ``model``, which stays as it is.

    Args:
        model (nn.Module): A model of this package.
        published (dict[str, Tensor]): Weights by published name.

    Returns:
        Conversion: The weights, and what does not fit.
    """
    state, joined = mit_to_mmseg(published)
    # A key map renames, slices and reshapes; the storage tells where a tensor comes from. Copies, since tied weights
    # of a checkpoint share one; all kept until the end, or the storage of a dropped one could be used again.
    copies = {key: x.clone() for key, x in state.items()}
    origin = {storage(x): joined[key] for key, x in copies.items()}
    state = dict(copies)
    for prefix, module in model.named_modules():  # parents first, as load_state_dict calls them
        if hasattr(module, '_from_published_layout'):
            module._from_published_layout(state, f'{prefix}.' if prefix else '')
    sources = {key: origin[storage(x)] for key, x in state.items()}
    kept = set(sources.values())

    conversion = Conversion(state, sources, [key for keys in origin.values() if keys not in kept for key in keys])
    expected = model.state_dict()
    for key, x in state.items():
        if key not in expected:
            conversion.left_over.extend(sources[key])
        elif x.shape != expected[key].shape:
            conversion.misfits.append(
                f'{key} has the shape {tuple(expected[key].shape)}, {" + ".join(sources[key])} {tuple(x.shape)}'
            )
    # torch fills in the counter, which checkpoints from before 0.4.1 lack.
    conversion.missing = [key for key in expected if key not in state and not key.endswith('num_batches_tracked')]
    conversion.misfits += norms_of_another_kind(model, published, sources)
    return conversion


def storage(x):
    return x.untyped_storage().data_ptr()


MIT_NAMES = (
    (r'patch_embed(\d)\.proj\.', r'layers.{}.0.projection.'),
    (r'patch_embed(\d)\.norm\.', r'layers.{}.0.norm.'),
    (r'block(\d)\.(\d+)\.attn\.proj\.', r'layers.{}.1.\2.attn.attn.out_proj.'),
    (r'block(\d)\.(\d+)\.attn\.q\.', r'layers.{}.1.\2.attn.attn.in_proj_'),
    (r'block(\d)\.(\d+)\.mlp\.fc1\.', r'layers.{}.1.\2.ffn.layers.0.'),
    (r'block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.', r'layers.{}.1.\2.ffn.layers.1.'),
    (r'block(\d)\.(\d+)\.mlp\.fc2\.', r'layers.{}.1.\2.ffn.layers.4.'),
    (r'block(\d)\.(\d+)\.', r'layers.{}.1.\2.'),
    (r'norm(\d)\.', r'layers.{}.2.'),
)


def mit_to_mmseg(published, prefix='backbone.'):
    """Rename the SegFormer authors' Mix Transformer under ``prefix`` to mmseg's; other checkpoints pass unchanged.

    Returns:
        tuple[dict, dict]: The weights, and the published keys that each is made of.
    """
    if f'{prefix}patch_embed1.proj.weight' not in published:
        return dict(published), {key: (key,) for key in published}
    state, sources = {}, {}
    for key, x in published.items():
        keys, name = (key,), key.removeprefix(prefix)
        if key.startswith(prefix):
            key_value = key.replace('.attn.q.', '.attn.kv.')
            if '.attn.kv.' in key and key.replace('.attn.kv.', '.attn.q.') in published:
                continue  # joined with the query's, below
            if key_value != key and key_value in published:
                keys, x = (key, key_value), torch.cat([x, published[key_value]])
            if re.search(r'\.mlp\.fc[12]\.weight$', key):
                x = x[:, :, None, None]
            for pattern, new in MIT_NAMES:
                match = re.match(pattern, name)
                if match:
                    stage = int(match[1]) - 1
                    name = match.expand(new.replace('{}', str(stage))) + name[match.end() :]
                    break
            name = prefix + name
        state[name], sources[name] = x, keys
    return state, sources


def norms_of_another_kind(model, published, sources):
    """SAPA with LayerNorm and with GroupNorm have equal shapes; the published projections tell them apart."""
    from sapa_mm.upsamplers import SAPA

    lines = []
    for prefix, module in model.named_modules():
        keys = sources.get(f'{prefix}.k.weight')
        if isinstance(module, SAPA) and keys and list(module.norm_x.parameters()):
            trained = 'layer' if published[keys[0]].dim() == 2 else 'group'
            built = 'group' if isinstance(module.norm_x, torch.nn.GroupNorm) else 'layer'
            if trained != built:
                lines.append(f'{prefix} was trained with norm={trained!r}, the config builds norm={built!r}')
    return lines


def read_published(path):
    """Return the weights of a checkpoint file, and the ``meta`` beside them; end the program if it has none."""
    if not osp.isfile(path):
        fail(f'there is no checkpoint {path}')
    try:
        content = read_checkpoint(path)
    except Exception as error:  # half a dozen types, and the checksum
        reason = (str(error).strip() or 'no reason given').splitlines()[0]
        fail(f'{path} cannot be read as weights only ({type(error).__name__}: {reason})')
    meta = {}
    if isinstance(content, dict):
        meta = content.get('meta')
        content = next((content[key] for key in ('state_dict', 'model') if key in content), content)
    if not isinstance(content, dict) or not content:
        fail(f'{path} is no checkpoint: it holds {type(content).__name__} instead of a dictionary of weights')
    others = [key for key, x in content.items() if not isinstance(x, torch.Tensor)]
    if others:
        fail(f'{path} is no checkpoint: no tensors under {", ".join(map(str, others))}')
    if all(key.startswith('module.') for key in content):  # saved from a parallel wrapper
        content = {key.removeprefix('module.'): x for key, x in content.items()}
    return content, meta if isinstance(meta, dict) else {}


def print_conversion(conversion, every_key):
    """Print the lists; those of the weights that found their place only if ``every_key``."""
    if every_key:
        for key, keys in conversion.sources.items():
            if keys[0] not in conversion.left_over:
                print(f'{" + ".join(keys)} -> {key}' if keys != (key,) else f'{key} (same name)')
    for title, lines in (
        ('not needed', conversion.dropped),
        ('left over: no place in the model', conversion.left_over),
        ('missing: nothing in the checkpoint maps to', conversion.missing),
        ('does not fit', conversion.misfits),
    ):
        if lines:
            print(f'\n{title} ({len(lines)}):', *lines, sep='\n  ')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('config', help='config file of an mmseg or mmdet model of this package')
    parser.add_argument('checkpoint', help='published checkpoint')
    parser.add_argument('out', nargs='?', help='checkpoint to write; it must not exist')
    parser.add_argument('--dry-run', action='store_true', help='list what maps to what, and write nothing')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    args = parser.parse_args()
    if args.dry_run == (args.out is not None):
        parser.error('give either a file to write or --dry-run')
    return args


def main():
    args = parse_args()
    if args.out is not None and osp.exists(args.out):
        fail(f'{args.out} exists')
    cfg = read_config(args.config, args.cfg_options)
    published, meta = read_published(args.checkpoint)
    scope = register_toolbox(cfg)
    cfg.model.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)

    conversion = convert(model, published)
    print_conversion(conversion, every_key=args.dry_run)
    if not conversion.fits:
        fail(f'{args.checkpoint} does not fit {args.config}; nothing written')
    model.load_state_dict(conversion.state_dict)
    print(f'\nall {len(model.state_dict())} weights of the model have a source')
    if args.dry_run:
        return
    content = dict(meta=dict(converted_from=osp.basename(args.checkpoint)), state_dict=model.state_dict())
    for key in ('CLASSES', 'PALETTE', 'dataset_meta'):  # what inference tools read
        if key in meta:
            content['meta'][key] = meta[key]
    part = f'{args.out}.part'
    torch.save(content, part)
    os.replace(part, args.out)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
