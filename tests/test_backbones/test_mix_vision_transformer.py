# SPDX-License-Identifier: Apache-2.0
"""MixVisionTransformer against mmseg's: the same weights and outputs, two epsilons."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
from mmseg.models.backbones import MixVisionTransformer as Parent

from sapa_mm.registry import MODELS


def build(kind, **options):
    torch.manual_seed(0)
    cfg = dict(embed_dims=8, num_layers=[1, 2, 1, 1], num_heads=[1, 1, 1, 1], qkv_bias=True, **options)
    return MODELS.build(dict(type=kind, **cfg)).eval()


def epsilons(model):
    return {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}


def test_epsilons():
    eps = epsilons(build('sapa_mm.MixVisionTransformer'))
    other = {name for name, value in eps.items() if value == 1e-5}
    # four patch embeddings; the reductions of the first three stages, which have 1, 2 and 1 blocks
    assert other == {f'layers.{s}.0.norm' for s in range(4)} | {
        f'layers.{s}.1.{b}.attn.norm' for s, b in ((0, 0), (1, 0), (1, 1), (2, 0))
    }
    assert {eps[name] for name in eps.keys() - other} == {1e-6} and len(eps) > 2 * len(other)
    assert set(epsilons(build('sapa_mm.MixVisionTransformer', embed_eps=1e-6)).values()) == {1e-6}


def test_weights_and_outputs_of_the_parent():
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    parent, child = build('mmseg.MixVisionTransformer'), build('sapa_mm.MixVisionTransformer', embed_eps=1e-6)
    assert type(parent) is Parent
    child.load_state_dict(parent.state_dict(), strict=True)
    with torch.no_grad():
        expected = parent(image)
        assert all(torch.equal(x, y) for x, y in zip(child(image), expected, strict=True))
        child = build('sapa_mm.MixVisionTransformer')
        child.load_state_dict(parent.state_dict(), strict=True)
        result = child(image)
    # Where a variance is not tiny the other epsilon changes little, and it does change something.
    assert not torch.equal(result[0], expected[0])
    for x, y in zip(result, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-2)
