# SPDX-License-Identifier: Apache-2.0
"""SegFormer's backbone with the two epsilons of its authors."""

from mmseg.models.backbones import MixVisionTransformer as Parent

from ..registry import MODELS


@MODELS.register_module()
class MixVisionTransformer(Parent):
    """MixVisionTransformer of mmseg with an epsilon of its own for the norms of patch embedding and spatial reduction.

    mmseg has 1e-6 in every LayerNorm. The authors have it in the norms of blocks and stages, and 1e-5 behind the patch
    embeddings and the spatial reductions of attention. Published weights give their published bits only with theirs.
    All parameters have the names of the parent.

    Args:
        *args, **kwargs: As the parent.
        embed_eps (float): Epsilon of the norms behind patch embeddings and spatial reductions. Defaults to 1e-5.

    Source: https://arxiv.org/abs/2105.15203
    """

    def __init__(self, *args, embed_eps: float = 1e-5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for patch_embed, blocks, _ in self.layers:
            patch_embed.norm.eps = embed_eps
            for block in blocks:
                if block.attn.sr_ratio > 1:
                    block.attn.norm.eps = embed_eps
