# SPDX-License-Identifier: Apache-2.0
"""Necks that upsample with a guide."""

from ..registry import MODELS, import_or_explain

GuidedFPN = import_or_explain('.guided_fpn', 'GuidedFPN', 'mmdet or mmseg', MODELS, __name__)

__all__ = ['GuidedFPN']
