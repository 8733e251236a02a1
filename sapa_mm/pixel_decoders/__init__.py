# SPDX-License-Identifier: Apache-2.0
"""Pixel decoders of mmdet that upsample with a guide."""

from ..registry import MODELS, import_or_explain

GuidedMSDeformAttnPixelDecoder = import_or_explain(
    '.guided_msdeformattn_pixel_decoder', 'GuidedMSDeformAttnPixelDecoder', 'mmdet', MODELS, __name__
)
GuidedPixelDecoder = import_or_explain('.guided_pixel_decoder', 'GuidedPixelDecoder', 'mmdet', MODELS, __name__)
GuidedTransformerEncoderPixelDecoder = import_or_explain(
    '.guided_pixel_decoder', 'GuidedTransformerEncoderPixelDecoder', 'mmdet', MODELS, __name__
)

__all__ = ['GuidedMSDeformAttnPixelDecoder', 'GuidedPixelDecoder', 'GuidedTransformerEncoderPixelDecoder']
