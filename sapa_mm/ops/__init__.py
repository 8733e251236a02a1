# SPDX-License-Identifier: Apache-2.0
"""The operators of the package: public functions on NCHW tensors.

They run Triton's kernels where these fit (:mod:`sapa_mm.ops.triton`), the compiled library where it is there, and
:mod:`sapa_mm.ops.reference` elsewhere: the same function, slower.
"""

from . import flops, reference, triton
from .channel_norm import channel_norm
from .deformable_assembly import deformable_assembly
from .deformable_scores import deformable_scores
from .feature_assembly import feature_assembly
from .library import OPERATORS, backend, is_loaded
from .norm_projection import norm_projection
from .point_affiliation import affiliation_kernels, point_affiliation

_names = (*(OPERATORS if is_loaded() else ()), *(f'triton_{name}' for name in triton.OPERATORS if triton.is_there))
if _names:
    from .fakes import register_fakes
    from .registration import register_backward

    for _name in _names:
        register_fakes(_name)
        register_backward(_name)

__all__ = [
    'affiliation_kernels',
    'backend',
    'channel_norm',
    'deformable_assembly',
    'deformable_scores',
    'feature_assembly',
    'flops',
    'norm_projection',
    'point_affiliation',
    'reference',
]
