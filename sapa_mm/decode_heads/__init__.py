# SPDX-License-Identifier: Apache-2.0
"""Decode heads of mmseg that upsample with a guide."""

from ..registry import MODELS, import_or_explain

GuidedDepthwiseSeparableASPPHead = import_or_explain(
    '.guided_sep_aspp_head', 'GuidedDepthwiseSeparableASPPHead', 'mmseg', MODELS, __name__
)
GuidedFPNHead = import_or_explain('.guided_fpn_head', 'GuidedFPNHead', 'mmseg', MODELS, __name__)
GuidedSegformerHead = import_or_explain('.guided_segformer_head', 'GuidedSegformerHead', 'mmseg', MODELS, __name__)
GuidedUPerHead = import_or_explain('.guided_uper_head', 'GuidedUPerHead', 'mmseg', MODELS, __name__)
SegNetHead = import_or_explain('.segnet_head', 'SegNetHead', 'mmseg', MODELS, __name__)

__all__ = [
    'GuidedDepthwiseSeparableASPPHead',
    'GuidedFPNHead',
    'GuidedSegformerHead',
    'GuidedUPerHead',
    'SegNetHead',
]
