# SPDX-License-Identifier: Apache-2.0
"""The operators of the package: public functions on NCHW tensors.

They run the compiled library where it is there and :mod:`sapa_mm.ops.reference` elsewhere: the same function, slower.
"""

from . import flops, reference
from .feature_assembly import feature_assembly
from .library import backend
from .point_affiliation import affiliation_kernels, point_affiliation

__all__ = ['affiliation_kernels', 'backend', 'feature_assembly', 'flops', 'point_affiliation', 'reference']
