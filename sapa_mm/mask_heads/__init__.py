# SPDX-License-Identifier: Apache-2.0
"""Mask heads of mmdet that upsample with the modules of this package."""

from ..registry import MODELS, import_or_explain

GuidedMaskHead = import_or_explain('.guided_mask_head', 'GuidedMaskHead', 'mmdet', MODELS, __name__)
#: Its name until version 0.1, which is that of its parent; configs may have it.
FCNMaskHead = MODELS.register_module(name='FCNMaskHead', module=GuidedMaskHead)

__all__ = ['FCNMaskHead', 'GuidedMaskHead']
