# SPDX-License-Identifier: Apache-2.0
"""Necks that upsample with a guide."""

from ..registry import MODELS, import_or_explain

GuidedFPN = import_or_explain('.guided_fpn', 'GuidedFPN', 'mmdet or mmseg', MODELS, __name__)
GuidedPAFPN = import_or_explain('.guided_pafpn', 'GuidedPAFPN', 'mmdet', MODELS, __name__)
GuidedYOLOXPAFPN = import_or_explain('.guided_yolo_pafpn', 'GuidedYOLOXPAFPN', 'mmdet', MODELS, __name__)
GuidedCSPNeXtPAFPN = import_or_explain('.guided_yolo_pafpn', 'GuidedCSPNeXtPAFPN', 'mmdet', MODELS, __name__)

__all__ = ['GuidedCSPNeXtPAFPN', 'GuidedFPN', 'GuidedPAFPN', 'GuidedYOLOXPAFPN']
