# SPDX-License-Identifier: Apache-2.0
"""Upsamplers: modules with ``forward(feature, guide)`` that give the feature the guide's size."""

from ..ops.flops import register_with_mmengine
from .a2u import A2U
from .base import BaseUpsampler, build_upsampler
from .carafe import CARAFE
from .deconv import Deconv
from .dlu import DLU
from .dysample import DySample
from .fade import FADE, FADELite
from .fapn_align import FaPNAlign
from .flow_align import FlowAlign
from .freq_fusion import FreqFusion
from .indexnet import IndexNet
from .interpolation import Bilinear, Nearest
from .lda_aqu import LDAAQU
from .pixel_shuffle import PixelShuffle
from .resfu import ReSFU
from .sapa import SAPA
from .sapa_deform import SAPADeform

__all__ = [
    'A2U',
    'CARAFE',
    'DLU',
    'FADE',
    'LDAAQU',
    'SAPA',
    'BaseUpsampler',
    'Bilinear',
    'Deconv',
    'DySample',
    'FADELite',
    'FaPNAlign',
    'FlowAlign',
    'FreqFusion',
    'IndexNet',
    'Nearest',
    'PixelShuffle',
    'ReSFU',
    'SAPADeform',
    'build_upsampler',
]

register_with_mmengine()
