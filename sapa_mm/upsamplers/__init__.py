# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401 (__all__ is made of the imports)
"""Upsamplers: modules with ``forward(feature, guide)`` that give the feature the guide's size.

The imports below are the one list of them: :data:`UPSAMPLERS`, :data:`VARIANTS` and ``__all__`` are made of it.
"""

from ..ops.flops import register_with_mmengine
from .a2u import A2U
from .base import BaseUpsampler, build_upsampler
from .carafe import CARAFE
from .deconv import Deconv
from .dysample import DySample
from .fade import FADE, FADELite
from .indexnet import IndexNet
from .interpolation import Bilinear, Nearest
from .pixel_shuffle import PixelShuffle
from .sapa import SAPA
from .sapa_deform import SAPADeform

#: The registered classes by name.
UPSAMPLERS: dict[str, type[BaseUpsampler]] = {
    name: kind
    for name, kind in sorted(globals().items(), key=lambda item: item[0].lower())
    if isinstance(kind, type) and issubclass(kind, BaseUpsampler) and kind is not BaseUpsampler
}
#: ``upsample_cfg`` of every published variant by its published name, such as ``'SAPA-G'``.
VARIANTS: dict[str, dict] = {
    name: dict(type=f'sapa_mm.{kind.__name__}', **options)
    for kind in UPSAMPLERS.values()
    for name, options in vars(kind).get('variants', {kind.__name__: {}}).items()
}

__all__ = ['UPSAMPLERS', 'VARIANTS', 'BaseUpsampler', 'build_upsampler', *UPSAMPLERS]

register_with_mmengine()
