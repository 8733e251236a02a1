# SPDX-License-Identifier: Apache-2.0
"""Mask heads of mmdet that upsample with the modules of this package."""

from ..registry import MODELS, import_or_explain

FCNMaskHead = import_or_explain('.fcn_mask_head', 'FCNMaskHead', 'mmdet', MODELS, __name__)

__all__ = ['FCNMaskHead']
