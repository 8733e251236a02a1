# SPDX-License-Identifier: Apache-2.0
"""Similarity-aware point affiliation (SAPA) and its peers for mmseg, mmdet and plain torch.

``from sapa_mm import SAPA`` and the other upsamplers need torch alone, and so do the operators, :mod:`sapa_mm.ops`.
Where mmengine is installed, the modules register themselves under the scope ``sapa_mm`` of its registries, so that a
config reaches them by name (``dict(type='sapa_mm.SAPA')``) without ``custom_imports``.

Importing the package imports nothing else, not even torch: names are loaded when they are asked for.
"""

from importlib import import_module

__version__ = '0.1.0'

_SUBMODULES = {
    'upsamplers': (
        'A2U',
        'BaseUpsampler',
        'Bilinear',
        'CARAFE',
        'CARAFEDownsample',
        'CARAFEStack',
        'ColourAffiliation',
        'DLU',
        'Deconv',
        'DySample',
        'FADE',
        'FADELite',
        'FaPNAlign',
        'FlowAlign',
        'FreqFusion',
        'IndexNet',
        'JBUStack',
        'LDAAQU',
        'NAF',
        'Nearest',
        'PixelShuffle',
        'ReSFU',
        'SAPA',
        'SAPADeform',
        'SAPAStack',
        'UPSAMPLERS',
        'VARIANTS',
        'build_upsampler',
    ),
    'conversion': ('convert',),
    'backbones': ('GuidedUNet', 'ImageGuidedUpsampler', 'MixVisionTransformer', 'SegNetEncoder'),
    'necks': ('GuidedCSPNeXtPAFPN', 'GuidedFPN', 'GuidedPAFPN', 'GuidedYOLOXPAFPN'),
    'decode_heads': (
        'GuidedDepthwiseSeparableASPPHead',
        'GuidedFPNHead',
        'GuidedSegformerHead',
        'GuidedUPerHead',
        'SegNetHead',
    ),
    'pixel_decoders': (
        'GuidedMSDeformAttnPixelDecoder',
        'GuidedPixelDecoder',
        'GuidedTransformerEncoderPixelDecoder',
    ),
    'mask_heads': ('FCNMaskHead', 'GuidedMaskHead'),
    'ops': (),
}
_HOME = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f'.{name}', __name__)
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'.{_HOME[name]}', __name__), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_HOME})
