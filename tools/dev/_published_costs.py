# SPDX-License-Identifier: Apache-2.0
"""What the papers and their repositories print as the cost of an upsampler, and how they came to it.

Sources: `SAPA` is the README of the published code (embed_dims 32, MACs), `SAPA draft` the anonymous submission
(embed_dims 64, two operations per MAC), `FADE`, `SAPA-D` and `DySample` the READMEs of these projects.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where an upsampler stands: channels of the guide and the feature, positions of the feature."""

    guide_channels: int
    channels: int
    cells: int


@dataclass(frozen=True)
class Printed:
    """One printed figure.

    Args:
        model: Key of a model in ``cost_tables.py``.
        upsampler: Key of an upsampler there.
        quantity: ``'params'`` or ``'macs'`` that it adds.
        figure: As printed, with K, M or G.
        source: Where it stands.
        times: Operations that the source counts per MAC.
        why: Why the figure differs from what is counted here.
        gives: The figure that ``why`` leads to, from what is counted and the places of the upsampler; None where no
            reading of the published code leads to the printed one.
    """

    model: str
    upsampler: str
    quantity: str
    figure: str
    source: str
    times: int = 1
    why: str = ''
    gives: Callable | None = None


def per_cell(formula):
    """Sum a formula of guide channels ``y`` and feature channels ``x`` over the cells of all places."""
    return lambda counted, places: sum(formula(p.guide_channels, p.channels) * p.cells for p in places)


def per_place(formula):
    return lambda counted, places: sum(formula(p.guide_channels, p.channels) for p in places)


def plus_per_cell(formula):
    return lambda counted, places: counted + per_cell(formula)(counted, places)


def bilinear(d):
    return lambda y, x: 4 * y * d + x * d + 100 * (d + x)


def gate(d):
    return lambda y, x: bilinear(d)(y, x) + x + 5 * d


BLEND = 'counts the two products of the blend with the guide, 8C per cell, which are element-wise'
GATE = "the paper's formula: SAPA-B and C + 5d per cell; here the feature is projected too, C d per cell"
A2U_FORMULA = "the paper's formula, 6 K^2 C + 4 K^2 + C per cell, has less than the filters and the assembly cost"
ASSEMBLY_TWICE = 'counts the assembly, 4 K^2 C per cell, twice'
TWICE_ROUNDED = 'twice the rounded 0.75'
INDEXNET = 'follows 32 C^2 + 16 C per place; the module in the training logs has 16 C^2'
SAMPLING = 'counts 9 operations per sampled value, 8 of them for the interpolation; here 5, 4 of them so'
WEIGHTS = 'leaves out the biases'
EXTRA_GROUP_NORM = 'leaves out the norms'


def a2u_formula(y, x):
    return 54 * y + 36 + y


def indexnet_formula(y, x):
    return 32 * y * y + 16 * y


def sampled_values(y, x):
    """Bilinearly sampled keys and values of SAPA-D per cell: 4 groups of 9 points at 4 positions."""
    return 4 * 9 * (4 * 32 + x)


def twice(formula):
    return lambda counted, places: 2 * formula(counted, places)


PRINTED = [
    # SegFormer-B1, 512x512
    Printed('segformer', 'SAPA-I', 'params', '0.00M', 'SAPA'),
    Printed('segformer', 'SAPA-I', 'macs', '0.75G', 'SAPA'),
    Printed('segformer', 'SAPA-B', 'params', '0.10M', 'SAPA'),
    Printed('segformer', 'SAPA-B', 'macs', '1.02G', 'SAPA'),
    Printed('segformer', 'SAPA-G, shared gate', 'params', '0.1M', 'SAPA'),
    Printed('segformer', 'SAPA-G, shared gate', 'macs', '1.02G', 'SAPA', why=GATE, gives=per_cell(gate(32))),
    Printed('segformer', 'CARAFE', 'params', '0.44M', 'SAPA'),
    Printed('segformer', 'CARAFE', 'macs', '1.45G', 'SAPA'),
    Printed('segformer', 'A2U', 'params', '0.06M', 'SAPA'),
    Printed('segformer', 'A2U', 'macs', '0.41G', 'SAPA', 2, A2U_FORMULA, per_cell(a2u_formula)),
    Printed('segformer', 'IndexNet', 'params', '12.60M', 'SAPA', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('segformer', 'IndexNet', 'macs', '30.66G', 'SAPA', why=INDEXNET, gives=per_cell(indexnet_formula)),
    Printed('segformer', 'SAPA-I', 'macs', '1.50G', 'SAPA draft', 2, TWICE_ROUNDED, lambda *_: 0.75e9),
    Printed('segformer', 'SAPA-B, d=64', 'params', '0.20M', 'SAPA draft'),
    Printed('segformer', 'SAPA-B, d=64', 'macs', '3.32G', 'SAPA draft', 2),
    Printed('segformer', 'SAPA-G, shared gate, d=64', 'params', '0.20M', 'SAPA draft'),
    Printed('segformer', 'SAPA-G, shared gate, d=64', 'macs', '3.34G', 'SAPA draft', 2, GATE, per_cell(gate(64))),
    Printed(
        'segformer', 'CARAFE', 'macs', '1.83G', 'SAPA draft', 1, ASSEMBLY_TWICE, plus_per_cell(lambda y, x: 100 * x)
    ),
    Printed('segformer', 'A2U, both branches', 'params', '0.12M', 'SAPA draft, FADE'),
    Printed('segformer', 'A2U', 'macs', '0.41G', 'SAPA draft', 2, A2U_FORMULA, per_cell(a2u_formula)),
    Printed('segformer', 'FADE', 'params', '0.29M', 'FADE'),
    Printed('segformer', 'FADE', 'macs', '2.65G', 'FADE', why=BLEND, gives=plus_per_cell(lambda y, x: 8 * x)),
    Printed('segformer', 'FADE-Lite', 'params', '80K', 'FADE'),
    Printed('segformer', 'FADE-Lite', 'macs', '0.89G', 'FADE', why=BLEND, gives=plus_per_cell(lambda y, x: 8 * x)),
    Printed('segformer', 'SAPA-D', 'params', '0.8M', 'SAPA-D'),
    Printed(
        'segformer', 'SAPA-D', 'macs', '5.3G', 'SAPA-D', 1, SAMPLING,
        per_cell(lambda y, x: 128 * (4 * y + x) + 288 * x + 9 * sampled_values(y, x)),
    ),
    Printed('segformer', 'Deconv', 'params', '3.5M', 'SAPA-D'),
    Printed(
        'segformer', 'Deconv', 'macs', '34.4G', 'SAPA-D', 1,
        'charges the transposed convolution at the high resolution; its stride is 2',
        lambda counted, places: 4 * counted,
    ),
    Printed(
        'segformer', 'PixelShuffle', 'params', '3.5M', 'SAPA-D', 1,
        'the value of the deconvolution; the printed FLOPs need 36 C^2 weights per place',
    ),
    Printed('segformer', 'PixelShuffle', 'macs', '34.4G', 'SAPA-D'),
    # MaskFormer Swin-B, 640x640
    Printed('maskformer', 'SAPA-I', 'params', '0.00M', 'SAPA'),
    Printed('maskformer', 'SAPA-I', 'macs', '0.43G', 'SAPA'),
    Printed('maskformer', 'SAPA-B', 'params', '0.05M', 'SAPA'),
    Printed('maskformer', 'SAPA-B', 'macs', '0.59G', 'SAPA'),
    Printed('maskformer', 'SAPA-G, shared gate', 'params', '0.05M', 'SAPA'),
    Printed('maskformer', 'CARAFE', 'params', '0.22M', 'SAPA'),
    Printed('maskformer', 'CARAFE', 'macs', '0.84G', 'SAPA'),
    Printed('maskformer', 'A2U', 'params', '0.03M', 'SAPA'),
    Printed('maskformer', 'A2U', 'macs', '0.23G', 'SAPA', 2, A2U_FORMULA, per_cell(a2u_formula)),
    Printed('maskformer', 'IndexNet', 'params', '6.30M', 'SAPA', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('maskformer', 'IndexNet', 'macs', '17.65G', 'SAPA', why=INDEXNET, gives=per_cell(indexnet_formula)),
    Printed('maskformer', 'SAPA-I', 'macs', '0.86G', 'SAPA draft', 2),
    Printed('maskformer', 'SAPA-B, d=64', 'params', '0.10M', 'SAPA draft'),
    Printed('maskformer', 'SAPA-B, d=64', 'macs', '1.91G', 'SAPA draft', 2),
    Printed('maskformer', 'SAPA-G, shared gate, d=64', 'params', '0.10M', 'SAPA draft'),
    Printed('maskformer', 'SAPA-G, shared gate, d=64', 'macs', '1.92G', 'SAPA draft', 2, GATE, per_cell(gate(64))),
    Printed('maskformer', 'CARAFE', 'macs', '1.67G', 'SAPA draft', 2),
    Printed('maskformer', 'A2U, both branches', 'params', '0.06M', 'SAPA draft'),
    Printed('maskformer', 'A2U', 'macs', '0.24G', 'SAPA draft', 2, A2U_FORMULA, per_cell(a2u_formula)),
    # Mask2Former Swin-B, 640x640
    Printed('mask2former', 'SAPA-I', 'params', '0.00M', 'SAPA'),
    Printed('mask2former', 'SAPA-I', 'macs', '0.33G', 'SAPA'),
    Printed('mask2former', 'SAPA-B', 'params', '0.02M', 'SAPA'),
    Printed('mask2former', 'SAPA-B', 'macs', '0.45G', 'SAPA'),
    Printed('mask2former', 'SAPA-G, shared gate', 'params', '0.02M', 'SAPA'),
    Printed('mask2former', 'CARAFE', 'params', '0.07M', 'SAPA'),
    Printed('mask2former', 'CARAFE', 'macs', '0.63G', 'SAPA'),
    Printed('mask2former', 'A2U', 'params', '0.01M', 'SAPA'),
    Printed('mask2former', 'A2U', 'macs', '0.18G', 'SAPA', 2, A2U_FORMULA, per_cell(a2u_formula)),
    Printed('mask2former', 'IndexNet', 'params', '2.10M', 'SAPA', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('mask2former', 'IndexNet', 'macs', '13.45G', 'SAPA', why=INDEXNET, gives=per_cell(indexnet_formula)),
    Printed('mask2former', 'SAPA-B, d=64', 'params', '0.03M', 'SAPA draft'),
    Printed('mask2former', 'SAPA-G, shared gate, d=64', 'params', '0.03M', 'SAPA draft'),
    Printed('mask2former', 'A2U, both branches', 'params', '0.02M', 'SAPA draft'),
    Printed('mask2former-160', 'SAPA-I', 'macs', '2.62G', 'SAPA draft', 2),
    Printed('mask2former-160', 'SAPA-B, d=64', 'macs', '5.83G', 'SAPA draft', 2),
    Printed('mask2former-160', 'SAPA-G, shared gate, d=64', 'macs', '5.86G', 'SAPA draft', 2, GATE, per_cell(gate(64))),
    Printed('mask2former-160', 'A2U', 'macs', '0.72G', 'SAPA draft', 2, A2U_FORMULA, per_cell(a2u_formula)),
    Printed(
        'mask2former-160', 'CARAFE', 'macs', '6.02G', 'SAPA draft', 2,
        'twice the count is 5.10, with the assembly counted twice 6.41',
    ),
    # Faster R-CNN R50, three steps
    Printed('fpn', 'SAPA-I', 'params', '0.00M', 'SAPA'),
    Printed('fpn', 'SAPA-B', 'params', '0.05M', 'SAPA'),
    Printed('fpn', 'SAPA-G, shared gate', 'params', '0.05M', 'SAPA'),
    Printed('fpn', 'CARAFE', 'params', '0.22M', 'SAPA'),
    Printed('fpn', 'A2U', 'params', '0.03M', 'SAPA'),
    Printed('fpn', 'IndexNet', 'params', '6.30M', 'SAPA', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('fpn', 'SAPA-B, d=64', 'params', '0.10M', 'SAPA draft'),
    Printed('fpn', 'SAPA-G, shared gate, d=64', 'params', '0.10M', 'SAPA draft'),
    Printed(
        'fpn', 'A2U, both branches', 'params', '0.12M', 'SAPA draft', 1,
        'the value of six places, as in SegFormer; this neck has three',
        lambda counted, places: 2 * counted,
    ),
    # detectors with the extra level in the path, four steps
    Printed('four-step', 'Deconv', 'params', '2.4M', 'SAPA-D'),
    Printed('four-step', 'PixelShuffle', 'params', '9.4M', 'SAPA-D'),
    Printed('four-step', 'CARAFE', 'params', '0.3M', 'SAPA-D'),
    Printed('four-step', 'IndexNet', 'params', '8.4M', 'SAPA-D', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('four-step', 'FADE', 'params', '0.2M', 'SAPA-D'),
    Printed('four-step', 'SAPA-D', 'params', '0.6M', 'SAPA-D'),
    Printed('four-step', 'DySample', 'params', '32.7K', 'DySample', why=WEIGHTS, gives=per_place(lambda y, x: 32 * x)),
    Printed('four-step', 'DySample+', 'params', '65.5K', 'DySample', why=WEIGHTS, gives=per_place(lambda y, x: 64 * x)),
    # Panoptic FPN R50, three steps
    Printed(
        'fpn', 'DySample', 'params', '24.6K', 'DySample', why=WEIGHTS, gives=per_place(lambda y, x: 32 * x)
    ),
    Printed('fpn', 'DySample+', 'params', '49.2K', 'DySample'),
    # UPerNet R50
    Printed('upernet', 'Deconv', 'params', '7.1M', 'SAPA-D'),
    Printed('upernet', 'PixelShuffle', 'params', '28.3M', 'SAPA-D'),
    Printed('upernet', 'CARAFE', 'params', '0.3M', 'SAPA-D'),
    Printed('upernet', 'IndexNet', 'params', '25.2M', 'SAPA-D', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('upernet', 'A2U, both branches', 'params', '0.1M', 'SAPA-D'),
    Printed('upernet', 'SAPA-B', 'params', '0.1M', 'SAPA-D'),
    Printed('upernet', 'FADE', 'params', '0.1M', 'SAPA-D', why='no part of the published module has this number'),
    Printed('upernet', 'SAPA-D', 'params', '0.1M', 'SAPA-D', why='the value of SAPA-B; the offsets alone have more'),
    # A2U matting R34, 512x512
    Printed('matting', 'SAPA-B', 'params', '0.04M', 'SAPA'),
    Printed('matting', 'SAPA-G, shared gate', 'params', '0.04M', 'SAPA'),
    Printed('matting', 'CARAFE', 'params', '0.26M', 'SAPA'),
    Printed('matting', 'A2U', 'params', '0.02M', 'SAPA'),
    Printed(
        'matting', 'IndexNet', 'params', '12.26M', 'SAPA', 1,
        'the block with context and nonlinearity, of hidden width 2C: 136 C^2 + 16 C per place',
        per_place(lambda y, x: 136 * y * y + 16 * y),
    ),
    Printed('matting', 'SAPA-B, d=64', 'params', '0.07M', 'SAPA draft'),
    Printed('matting', 'SAPA-G, shared gate, d=64', 'params', '0.07M', 'SAPA draft'),
    Printed('matting', 'A2U, both branches', 'params', '0.04M', 'SAPA draft'),
    Printed('matting', 'FADE', 'params', '0.12M', 'FADE'),
    Printed('matting', 'FADE-Lite', 'params', '27K', 'FADE'),
    Printed(
        'matting', 'A2U, both branches', 'params', '38K', 'FADE', 1, EXTRA_GROUP_NORM,
        lambda counted, places: counted - sum(4 * p.guide_channels for p in places),
    ),
    Printed('matting', 'CARAFE', 'macs', '6.00G', 'FADE'),
    Printed('matting', 'FADE', 'macs', '8.85G', 'FADE', why=BLEND, gives=plus_per_cell(lambda y, x: 8 * x)),
    Printed('matting', 'FADE-Lite', 'macs', '1.46G', 'FADE'),
    Printed('matting', 'A2U', 'macs', '0.66G', 'FADE', 2, A2U_FORMULA, per_cell(a2u_formula)),
    # BTS R50
    Printed('bts', 'SAPA-B', 'params', '0.16M', 'SAPA'),
    Printed('bts', 'SAPA-G', 'params', '0.25M', 'SAPA'),
    Printed('bts', 'CARAFE', 'params', '0.41M', 'SAPA'),
    Printed('bts', 'A2U', 'params', '0.08M', 'SAPA'),
    Printed('bts', 'IndexNet', 'params', '44.20M', 'SAPA', why=INDEXNET, gives=per_place(indexnet_formula)),
    Printed('bts', 'SAPA-B, d=64', 'params', '0.31M', 'SAPA draft'),
    Printed('bts', 'SAPA-G, d=64', 'params', '0.49M', 'SAPA draft'),
    Printed('bts', 'A2U, both branches', 'params', '0.15M', 'SAPA draft'),
]  # fmt: skip
