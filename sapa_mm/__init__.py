# SPDX-License-Identifier: Apache-2.0
"""Similarity-aware point affiliation (SAPA) and its peers for mmseg, mmdet and plain torch.

The modules register themselves under the scope ``sapa_mm`` of mmengine's registries, so that a config reaches them by
name (``dict(type='sapa_mm.SAPA')``) without ``custom_imports``. The operators live in :mod:`sapa_mm.ops` and need only
torch.
"""

__version__ = '0.1.0'
