# SPDX-License-Identifier: Apache-2.0
"""The operators of the package: public functions on NCHW tensors.

They run the compiled library where it is there and :mod:`sapa_mm.ops.reference` elsewhere: the same function, slower.
"""

from . import flops, reference
from .channel_norm import channel_norm, norm_projection
from .deformable_sampling import deformable_assembly, deformable_scores
from .feature_assembly import feature_assembly
from .library import backend
from .point_affiliation import affiliation_kernels, point_affiliation

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
