# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401 (__all__ is made of the imports)
"""Upsamplers: modules with ``forward(feature, guide)`` that give the feature the guide's size.

The imports below are the one list of them: :data:`UPSAMPLERS`, :data:`VARIANTS` and ``__all__`` are made of it.
"""

from ..ops.flops import register_with_mmengine
from .a2u import A2U
from .base import BaseUpsampler, build_upsampler
from .carafe import CARAFE, CARAFEDownsample
from .deconv import Deconv
from .dlu import DLU
from .dysample import DySample
from .fade import FADE, FADELite
from .fapn_align import FaPNAlign
from .flow_align import FlowAlign
from .freq_fusion import FreqFusion
from .image_guided import NAF, CARAFEStack, ColourAffiliation, JBUStack, SAPAStack
from .indexnet import IndexNet
from .interpolation import Bilinear, Nearest
from .lda_aqu import LDAAQU
from .pixel_shuffle import PixelShuffle
from .resfu import ReSFU
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

__all__ = [
    'NAF',
    'UPSAMPLERS',
    'VARIANTS',
    'BaseUpsampler',
    'CARAFEDownsample',
    'CARAFEStack',
    'ColourAffiliation',
    'JBUStack',
    'SAPAStack',
    'build_upsampler',
    *UPSAMPLERS,
]

register_with_mmengine()
