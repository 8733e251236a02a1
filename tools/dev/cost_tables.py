#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write docs/cost_tables.md: what each upsampler adds to each model, beside what was published.

Nothing is typed in but the published figures. The part of a model that upsamples is built from its config, with and
without the upsampler, and run under the counter of get_flops.py, on torch's meta device: only shapes are computed.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from get_flops import build_model, count, parameters  # first: sets how torch's threads wait

# isort: split
import torch
from _published_costs import PRINTED, Place, Printed
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from sapa_mm.upsamplers import VARIANTS, BaseUpsampler, build_upsampler

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'cost_tables.md'


# The published variants, and what else the published columns count.
OTHER_VARIANTS = {
    'A2U, both branches': dict(VARIANTS['A2U'], downsample=True),
    'FADE, no gate': dict(VARIANTS['FADE'], gating=False),
    'SAPA-B, d=64': dict(VARIANTS['SAPA-B'], embed_dims=64),
    'SAPA-G, d=64': dict(VARIANTS['SAPA-G'], embed_dims=64),
    'SAPA-G, shared gate': dict(VARIANTS['SAPA-G'], gate='shared'),
    'SAPA-G, shared gate, d=64': dict(VARIANTS['SAPA-G'], gate='shared', embed_dims=64),
}
UPSAMPLERS = dict(sorted({**VARIANTS, **OTHER_VARIANTS}.items(), key=lambda item: item[0].lower()))


@cache
def _read_config(config: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / config)


def read_config(config: str) -> Config:
    """A copy of the config, to change."""
    return deepcopy(_read_config(config))


@dataclass(frozen=True)
class Costs:
    """Of a part of a model, and where in it upsamplers stand."""

    params: int
    macs: int
    places: tuple[Place, ...]

    def __sub__(self, other: 'Costs') -> 'Costs':
        return replace(self, params=self.params - other.params, macs=self.macs - other.macs)


@dataclass(frozen=True)
class Decoder:
    """The part of a config's model that upsamples.

    Args:
        title: For the page.
        config: Relative to ``configs``.
        shape: Height and width of the image.
        part: Key of the part in the config's model; after a dot, of the module in it that takes ``upsample_cfg``.
        options: Changes of that module's config, with dots for nested keys.
        strides: Of the maps that it takes.
        skip: Transformer encoder in it that gives back its query instead: mmcv's deformable attention reads sizes from
            tensors, which have no values on the meta device, and costs the same with any upsampler.
    """

    title: str
    config: str
    shape: tuple[int, int]
    part: str
    options: dict = field(default_factory=dict)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    skip: str = ''

    def costs(self, upsample_cfg: dict | None) -> Costs:
        name, _, inner = self.part.partition('.')
        cfg = read_config(self.config)
        changes = dict(self.options, upsample_cfg=upsample_cfg)
        cfg.merge_from_dict({f'model.{self.part}.{key}': value for key, value in changes.items()})
        part = cfg.model[name]
        with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
            module = MODELS.build(part).eval().get_submodule(inner)
            maps = [
                torch.empty(1, channels, *(math.ceil(side / stride) for side in self.shape))
                for channels, stride in zip(part.in_channels, self.strides, strict=True)
            ]
        if self.skip:
            module.get_submodule(self.skip).forward = lambda query, **_: query
        metas = [dict(img_shape=self.shape, batch_input_shape=self.shape)]
        arguments = [maps, metas] if 'batch_img_metas' in signature(module.forward).parameters else [maps]
        places = []
        for upsampler in module.modules():
            if isinstance(upsampler, BaseUpsampler):
                upsampler.register_forward_pre_hook(lambda _, inputs: places.append(_place(*inputs)))
        macs = count(module, lambda: module(*arguments)).macs
        return Costs(parameters(module), macs, tuple(places))


def _place(feature: torch.Tensor, guide: torch.Tensor) -> Place:
    return Place(guide.shape[1], feature.shape[1], feature.shape[2] * feature.shape[3])


@dataclass(frozen=True)
class Steps:
    """The upsampling steps of a model that this project does not have: guide channels, channels, sides of the map."""

    title: str
    steps: tuple[tuple[int, int, int, int], ...]

    def costs(self, upsample_cfg: dict) -> Costs:
        params, macs, places = 0, 0, []
        for guide_channels, channels, height, width in self.steps:
            with torch.device('meta'):
                upsampler = build_upsampler(upsample_cfg, channels, guide_channels).eval()
                feature = torch.empty(1, channels, height, width)
                guide = torch.empty(1, guide_channels, 2 * height, 2 * width)
            params += parameters(upsampler)
            macs += count(upsampler, lambda u=upsampler, x=feature, y=guide: u(x, y)).macs
            places.append(_place(feature, guide))
        return Costs(params, macs, tuple(places))


SEGFORMER = 'segformer/segformer_mit-b1_1xb16-160k_ade20k-512x512.py'
MASKFORMER = 'maskformer/maskformer_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'
MASK2FORMER = 'mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'
UPERNET = 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
FASTER_RCNN = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
FASTER_RCNN_64 = 'faster_rcnn/faster-rcnn_r50_fpn-stride64_1x_coco.py'
PANOPTIC_FPN = 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
BTS = 'bts/bts_r50_1xb4-50e_nyu-416x544.py'
SEGNET = 'segnet/segnet_vgg16-bn_1xb8-200e_sunrgbd-480x480.py'

mask2former = Decoder(
    'Mask2Former Swin-B, 640x640',
    MASK2FORMER,
    (640, 640),
    'decode_head.pixel_decoder',
    skip='encoder',
)
TABLES = {
    'segformer': Decoder('SegFormer-B1, 512x512', SEGFORMER, (512, 512), 'decode_head'),
    'maskformer': Decoder('MaskFormer Swin-B, 640x640', MASKFORMER, (640, 640), 'decode_head.pixel_decoder'),
    'mask2former': mask2former,
    'mask2former-160': replace(mask2former, title='Mask2Former, a feature of 160x160', shape=(1280, 1280)),
    'upernet': Decoder('UPerNet, 512x512', UPERNET, (512, 512), 'decode_head'),
    'fpn': Decoder(
        'Faster R-CNN and Panoptic FPN, 800x1344',
        FASTER_RCNN, (800, 1344), 'neck', dict(type='sapa_mm.GuidedFPN'),
    ),
    'four-step': Decoder(
        'Faster R-CNN and Mask R-CNN with a fourth step, 832x1344', FASTER_RCNN_64, (832, 1344), 'neck'
    ),
    'segnet': Decoder('SegNet, 480x480', SEGNET, (480, 480), 'decode_head', strides=(1, 2, 4, 8, 16, 32)),
    'matting': Steps(
        'A2U matting R34, 512x512',
        ((256, 256, 32, 32), (128, 128, 64, 64), (64, 64, 128, 128), (64, 64, 256, 256)),
    ),
    'bts': Decoder('BTS R50, 416x544', BTS, (416, 544), 'decode_head', strides=(2, 4, 8, 16, 32)),
}  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A published size of a whole model without guided upsampling; ``plus`` is what ``why`` adds to the count."""

    title: str
    config: str
    figure: str
    trainable: bool = False
    why: str = ''
    plus: int = 0


WHOLE = [
    Whole(
        'SegFormer-B1', SEGFORMER, '13.74M',
        why='has 19,350 unused parameters in the head, a second classifier', plus=128 * 150 + 150,
    ),
    Whole('MaskFormer Swin-B', MASKFORMER, '102M'),
    Whole('Mask2Former Swin-B', MASK2FORMER, '107M'),
    Whole('UPerNet R50', UPERNET, '66.5M'),
    Whole('UPerNet R101', UPERNET.replace('r50', 'r101'), '85.5M'),
    Whole('Faster R-CNN R50', FASTER_RCNN, '41.53M', trainable=True),
    Whole('Faster R-CNN R50, four steps', FASTER_RCNN_64, '46.8M', trainable=True),
    Whole('Faster R-CNN R101, four steps', FASTER_RCNN_64.replace('r50', 'r101'), '65.8M', trainable=True),
    Whole('Panoptic FPN R50', PANOPTIC_FPN, '46.0M'),
    Whole('Panoptic FPN R101', PANOPTIC_FPN.replace('r50', 'r101'), '65.0M'),
    Whole(
        'BTS R50', BTS, '49.53M', why='has the classifier of the ImageNet encoder, which no forward uses',
        plus=2048 * 1000 + 1000,
    ),
]  # fmt: skip


def parse_figure(figure: str) -> tuple[float, float, int]:
    """Value, unit and decimals of a printed figure such as ``0.75G``."""
    number, unit = figure[:-1], dict(K=1e3, M=1e6, G=1e9)[figure[-1]]
    return float(number), unit, len(number.partition('.')[2])


def agrees(counted: float, figure: str) -> str:
    """How the count agrees with the figure to its last digit: ``'equal'``, ``'equal, cut'`` or not at all (``''``)."""
    value, unit, decimals = parse_figure(figure)
    digits = counted / unit * 10**decimals
    printed = round(value * 10**decimals)
    if abs(digits - printed) <= 0.5:
        return 'equal'
    return 'equal, cut' if math.floor(digits) == printed else ''


def verdict(printed: Printed, counted: int | None, places: tuple[Place, ...]) -> str:
    """Compare; an explanation has to lead to the printed figure, and none may stand where the count rounds to it."""
    name = f'{printed.model}, {printed.upsampler}, {printed.figure}'
    same = '' if counted is None else agrees(counted * printed.times, printed.figure)
    if same == 'equal' and printed.why:
        raise ValueError(f'{name}: equal, and yet explained: {printed.why}')
    if same and not printed.why:
        return same
    if not printed.why:
        raise ValueError(f'{name}: counted {counted} x {printed.times}, and nothing explains the difference')
    if printed.gives is None:
        return f'differs: {printed.why}'
    gives = printed.gives(counted, places) * printed.times
    if not agrees(gives, printed.figure):
        raise ValueError(f'{name}: the explanation leads to {gives}: {printed.why}')
    return f'explained: {printed.why} ({show(gives, printed.figure)})'


def show(value: float, like: str) -> str:
    """In the unit of a printed figure, with a digit more."""
    _, unit, decimals = parse_figure(like)
    return f'{value / unit:,.{decimals + 1}f} {like[-1]}'


def table(head: Iterable[str], align: str, rows: Iterable[Iterable[str]]) -> list[str]:
    marks = dict(l='---', r='---:')
    lines = [head, [marks[a] for a in align], *rows]
    return ['| ' + ' | '.join(line) + ' |' for line in lines] + ['']


INTRODUCTION = """\
# What an upsampler costs

Parameters and multiply-accumulates (MACs) that each upsampler adds to a model in place of interpolation, counted on the
models of this project by `python tools/dev/cost_tables.py`, beside the published figures. `tools/get_flops.py` counts
whole models, with the same rules: convolutions, matrix products and the operators of `sapa_mm` at one MAC per product,
4 MACs per bilinearly sampled value; norms, softmax, biases and element-wise work not at all, as in the papers. FLOPs
that count multiplication and addition are twice the MACs.

`d` is `embed_dims`, 32 unless stated. The published columns of SAPA-G count a projection that both branches share
(`gate='shared'`); the published training logs, and the default here, have one each.

A published figure is *equal* if the count rounds to it, and *equal, cut* if the count becomes it by leaving out digits.
Where it differs, it is *explained* by a rule that leads to it (its result in brackets), or *differs* if none does.
Sources: the READMEs of SAPA, FADE, SAPA-D and DySample; the draft of SAPA has `d=64` and counts two operations per MAC
(`x2`), and so does every paper for A2U.
"""


def added_costs(model: Decoder | Steps) -> dict[str, Costs | None]:
    """What each upsampler adds to the model with nearest neighbours; None where its channels do not fit."""
    base = model.costs(UPSAMPLERS['Nearest'])
    added = {}
    for name, cfg in UPSAMPLERS.items():
        try:
            added[name] = model.costs(cfg) - base
        except ValueError:
            added[name] = None
    return added


def page() -> str:
    lines = [INTRODUCTION]
    for key, model in TABLES.items():
        added = added_costs(model)
        places = added['Nearest'].places
        steps = ', '.join(f'{p.channels} ({p.guide_channels})' for p in places)
        lines += [f'## {model.title}', '']
        count_places = f'{len(places)} places' if len(places) > 1 else '1 place'
        lines += [f'{count_places}, {sum(p.cells for p in places):,} cells; channels (of the guide): {steps}.', '']
        rows = [
            (name, f'{cost.params / 1e6:.3f} M', f'{cost.macs / 1e9:.3f} G') if cost else (name, '-', '-')
            for name, cost in added.items()
        ]
        lines += table(('upsampler', 'parameters', 'MACs'), 'lrr', rows)
        rows = []
        for printed in PRINTED:
            if printed.model == key:
                cost = added[printed.upsampler]
                counted = cost and getattr(cost, printed.quantity)
                times = f' (x{printed.times})' if printed.times > 1 else ''
                rows.append(
                    (
                        printed.upsampler,
                        printed.source,
                        dict(params='parameters', macs='MACs')[printed.quantity] + times,
                        f'+{printed.figure[:-1]} {printed.figure[-1]}',
                        '-' if counted is None else show(counted * printed.times, printed.figure),
                        verdict(printed, counted, places),
                    )
                )
        if rows:
            lines += table(('upsampler', 'source', 'of', 'published', 'counted', 'verdict'), 'lllrrl', rows)
    lines += ['## Whole models', '', 'With interpolation.', '']
    lines += table(('model', 'of', 'published', 'counted', 'verdict'), 'llrrl', map(whole_row, WHOLE))
    return '\n'.join(lines).rstrip() + '\n'


def whole_row(whole: Whole) -> tuple[str, ...]:
    model = build_model(read_config(whole.config))
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad or not whole.trainable)
    printed = Printed(
        whole.title, '', 'params', whole.figure, '', why=whole.why, gives=lambda counted, _: counted + whole.plus
    )
    of = 'trainable parameters' if whole.trainable else 'parameters'
    figure = f'{whole.figure[:-1]} {whole.figure[-1]}'
    return whole.title, of, figure, show(counted, whole.figure), verdict(printed, counted, ())


def register_toolboxes() -> None:
    import mmdet.utils
    import mmseg.utils

    for toolbox in (mmdet, mmseg):
        toolbox.utils.register_all_modules(init_default_scope=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare with the stored page instead of writing it')
    args = parser.parse_args()
    register_toolboxes()
    text = page()
    if not args.check:
        PAGE.write_text(text)
        return
    stored = PAGE.read_text() if PAGE.exists() else ''
    if stored != text:
        sys.stdout.writelines(
            difflib.unified_diff(stored.splitlines(True), text.splitlines(True), 'docs/cost_tables.md', 'counted')
        )
        sys.exit('docs/cost_tables.md is not what the models cost: run python tools/dev/cost_tables.py')


if __name__ == '__main__':
    main()
