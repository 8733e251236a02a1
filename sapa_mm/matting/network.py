# SPDX-License-Identifier: Apache-2.0
"""The matting network of the A2U experiments: a ResNet-34 that pools where it shrinks, and four guided steps back."""

import re

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import MODELS
from ..state_dict import LoadsPublishedLayout
from ..upsamplers import SAPA, build_upsampler

SLOPE = 0.01
UPSAMPLER_INITS = ('published', 'own')
#: Both sides of the input are multiples of it: four halvings.
DIVISOR = 16


class ActivatedBatchNorm(nn.BatchNorm2d):
    """BatchNorm and the leaky ReLU after it, the ``ABN`` of the published network.

    Args:
        channels (int): Channels of the map.
        activated (bool): Whether the leaky ReLU follows. Defaults to True.
        inplace_abn_scale (bool): Scale by ``|weight| + eps`` in place of ``weight``, as the kernels of InPlaceABN do.
            A published checkpoint with negative weights needs it. Defaults to False.
    """

    def __init__(self, channels: int, activated: bool = True, inplace_abn_scale: bool = False) -> None:
        super().__init__(channels)
        self.activated = activated
        self.inplace_abn_scale = inplace_abn_scale

    def forward(self, x: Tensor) -> Tensor:
        if self.inplace_abn_scale:
            weight = self.weight.abs() + self.eps
            training = self.training
            if training:
                self.num_batches_tracked.add_(1)
            x = F.batch_norm(
                x, self.running_mean, self.running_var, weight, self.bias, training, self.momentum, self.eps
            )
        else:
            x = super().forward(x)
        return F.leaky_relu(x, SLOPE) if self.activated else x


def conv(inputs: int, outputs: int, kernel_size: int = 3, **options) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False, **options)


class _Named(nn.Module):
    """Children under the names that the published state dicts give them."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class _Pair(_Named):
    """Two 3x3 convolutions, each with its norm; the second norm has no activation, for the sum that follows."""

    def __init__(self, inputs, outputs, norm):
        super().__init__(
            conv1=conv(inputs, outputs), bn1=norm(outputs), conv2=conv(outputs, outputs), bn2=norm(outputs, False)
        )

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


class _EncoderUnit(_Named):
    def __init__(self, channels, norm):
        super().__init__(convs=_Pair(channels, channels, norm))

    def forward(self, x):
        return F.leaky_relu(self.convs(x) + x, SLOPE)


class _DecoderUnit(_Named):
    def __init__(self, inputs, outputs, norm):
        projection = dict(proj_conv=conv(inputs, outputs, 1), proj_bn=norm(outputs, False)) if inputs != outputs else {}
        super().__init__(dep_sep_conv=_Pair(inputs, outputs, norm), **projection)

    def forward(self, x):
        shortcut = self.proj_bn(self.proj_conv(x)) if hasattr(self, 'proj_conv') else x
        return F.leaky_relu(self.dep_sep_conv(x) + shortcut, SLOPE)


class _ShrinkingUnit(_Named):
    """The first unit of a stage, which halves the size between its two convolutions by max-pooling."""

    def __init__(self, inputs, outputs, norm):
        super().__init__(
            layer1=_Named(conv1=conv(inputs, outputs), bn1=norm(outputs)),
            layer2=_Named(conv2=conv(outputs, outputs), bn2=norm(outputs, False)),
            proj_conv=conv(inputs, outputs, 1, stride=2),
            proj_bn=norm(outputs, False),
        )

    def forward(self, x):
        before = self.layer1.bn1(self.layer1.conv1(x))
        after = self.layer2.bn2(self.layer2.conv2(F.max_pool2d(before, 2)))
        return before, F.leaky_relu(after + self.proj_bn(self.proj_conv(x)), SLOPE)


class _Stage(_Named):
    """Three units in a row."""

    def __init__(self, channels, norm):
        super().__init__(**{f'block{i}': _EncoderUnit(channels, norm) for i in (1, 2, 3)})

    def forward(self, x):
        for unit in self.children():
            x = unit(x)
        return x


class _ASPP(_Named):
    def __init__(self, channels, dropout_ratio, norm):
        def branch(*layers):
            return _Named(atrous_conv=nn.Sequential(*layers))

        def dilated(rate):
            depthwise = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False)
            return branch(depthwise, norm(channels), conv(channels, channels, 1), norm(channels))

        super().__init__(
            aspp1=branch(conv(channels, channels, 1), norm(channels)),
            aspp2=dilated(6),
            aspp3=dilated(12),
            aspp4=dilated(18),
            global_avg_pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(channels, channels, 1), norm(channels)),
            bottleneck_conv=nn.Sequential(conv(5 * channels, channels, 1), norm(channels)),
            dropout=nn.Dropout(dropout_ratio),
        )

    def forward(self, x):
        branches = [branch.atrous_conv(x) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        pooled = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        return self.dropout(self.bottleneck_conv(torch.cat([*branches, pooled], 1)))


class _DecoderStage(_Named):
    def __init__(self, inputs, guide, outputs, upsample_cfg, norm):
        super().__init__(
            up=build_upsampler(upsample_cfg, inputs, guide),
            dconv=_DecoderUnit(inputs, outputs, norm),
            dconv1=_DecoderUnit(outputs, outputs, norm),
        )

    def forward(self, x, guide, skip):
        return self.dconv1(self.dconv(self.up(x, guide) + skip))


@MODELS.register_module()
class GuidedMattingNet(LoadsPublishedLayout, BaseModule):
    r"""ResNet-34 encoder and decoder for image matting, with an upsampler in each of the four steps of the decoder.

    The encoder shrinks by max-pooling alone, so every step of the decoder finds a guide of its output size from just
    before the pooling:

    =====  =================  =========================  ======================  =========
    step   feature            guide                      added after upsampling  result
    =====  =================  =========================  ======================  =========
    4      256 at 1/16        256 at 1/8                 stage 2, 128 at 1/8     128
    3      128 at 1/8         128 at 1/4                 stage 1, 64 at 1/4      64
    2      64 at 1/4          64 at 1/2 (pooled stem)    pooled stem             64
    1      64 at 1/2          64 at 1 (stem)             the input, 4 at 1       32
    =====  =================  =========================  ======================  =========

    The keys of the published state dict load as they are; those of a torchvision ResNet-34 go to the encoder
    (``init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34')``), whose fourth input channel starts at 0.
    The published encoder was another: a ResNet-34 trained with leaky ReLUs, which can no longer be downloaded.

    Args:
        upsample_cfg (dict): The upsampler of all four steps, such as ``dict(type='sapa_mm.SAPA')``.
        dropout_ratio (float): Dropout after the ASPP, 0 to 1. Defaults to 0.5.
        inplace_abn_scale (bool): See :class:`ActivatedBatchNorm`. Defaults to False.
        upsampler_init (str): ``'published'`` initialises the upsamplers with the rule of the whole network, as the
            published code does, Xavier normal for convolutions, and for SAPA's projections, linear layers there,
            Xavier uniform with gain 0.1; ``'own'`` leaves them their own. Defaults to ``'published'``.
        init_cfg (dict or list[dict], optional): Initialisation on top of that.

    Raises:
        ValueError: If an option is out of range.

    Source: https://arxiv.org/abs/2104.14222 (the network), https://arxiv.org/abs/2209.12866 (SAPA in it)
    """

    def __init__(
        self,
        upsample_cfg: dict,
        dropout_ratio: float = 0.5,
        inplace_abn_scale: bool = False,
        upsampler_init: str = 'published',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 0 <= dropout_ratio <= 1:
            raise ValueError(f'dropout_ratio must be between 0 and 1, got {dropout_ratio}')
        if upsampler_init not in UPSAMPLER_INITS:
            raise ValueError(f'upsampler_init must be one of {UPSAMPLER_INITS}, got {upsampler_init!r}')
        self.upsampler_init = upsampler_init

        def norm(channels, activated=True):
            return ActivatedBatchNorm(channels, activated, inplace_abn_scale)

        self.layer0 = nn.Sequential(conv(4, 64, 7), norm(64))
        self.layer1 = _Stage(64, norm)
        self.layer2_1 = _ShrinkingUnit(64, 128, norm)
        self.layer2_2 = _Stage(128, norm)
        self.layer3_1 = _ShrinkingUnit(128, 256, norm)
        self.layer3_2 = _Stage(256, norm)
        self.dconv_pp = _ASPP(256, dropout_ratio, norm)
        for step, channels in {4: (256, 256, 128), 3: (128, 128, 64), 2: (64, 64, 64), 1: (64, 64, 32)}.items():
            self.add_module(f'decoder_layer{step}', _DecoderStage(*channels, upsample_cfg, norm))
        for step, channels in {3: (128, 256), 2: (64, 128), 1: (64, 64), 0: (4, 64)}.items():
            self.add_module(f'short{step}', nn.Sequential(conv(*channels), norm(channels[1])))
        self.pred = nn.Sequential(nn.Sequential(conv(32, 1), norm(1)), conv(1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier normal with the gain of the leaky ReLU for all convolutions; see ``upsampler_init``."""
        gain = nn.init.calculate_gain('leaky_relu', SLOPE)
        upsamplers = [getattr(self, f'decoder_layer{step}').up for step in (4, 3, 2, 1)]
        inside = {module for upsampler in upsamplers for module in upsampler.modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and (self.upsampler_init == 'published' or module not in inside):
                nn.init.xavier_normal_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for upsampler in upsamplers:
            if self.upsampler_init == 'own':
                upsampler.reset_parameters()
            elif isinstance(upsampler, SAPA):
                for module in upsampler.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.xavier_uniform_(module.weight, 0.1)

    def init_weights(self) -> None:
        """Initialise again, then apply ``init_cfg`` (an encoder checkpoint, for example)."""
        self.reset_parameters()
        # The upsamplers' own init_weights would undo the published rule.
        children = self._modules
        if self.upsampler_init == 'published':
            self._modules = {}
        try:
            super().init_weights()
        finally:
            self._modules = children

    def forward(self, x: Tensor) -> Tensor:
        """Predict the matte.

        Args:
            x: ``(N, 4, H, W)``: normalised RGB, and the trimap divided by 255; both sides multiples of 16.

        Returns:
            ``(N, 1, H, W)``, unbounded; opacity is what lies between 0 and 1.

        Raises:
            ValueError: If the shape does not fit.
        """
        if x.dim() != 4 or x.shape[1] != 4 or x.shape[2] % DIVISOR or x.shape[3] % DIVISOR or 0 in x.shape[2:]:
            raise ValueError(
                f'the input must be (N, 4, H, W) with H and W multiples of {DIVISOR}, got {tuple(x.shape)}; '
                'sapa_mm.Mattor pads pictures to that'
            )
        stem = self.layer0(x)
        pooled = F.max_pool2d(stem, 2)
        stage1 = self.layer1(F.max_pool2d(pooled, 2))
        guide2, stage2 = self.layer2_1(stage1)
        stage2 = self.layer2_2(stage2)
        guide3, stage3 = self.layer3_1(stage2)
        stage3 = self.layer3_2(stage3)
        out = self.dconv_pp(stage3)
        out = self.decoder_layer4(out, guide3, self.short3(stage2))
        out = self.decoder_layer3(out, guide2, self.short2(stage1))
        out = self.decoder_layer2(out, pooled, self.short1(pooled))
        out = self.decoder_layer1(out, stem, self.short0(x))
        return self.pred(out)

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        """Give the keys of a torchvision ResNet-34 the names of the encoder, in place; others pass unchanged."""
        if f'{prefix}conv1.weight' not in state_dict:
            return
        for key in [key for key in state_dict if key.startswith(prefix)]:
            new = _from_torchvision(key[len(prefix) :])
            x = state_dict.pop(key)
            if new is not None:
                # The trimap's channel is unknown to a classifier.
                state_dict[prefix + new] = F.pad(x, (0, 0, 0, 0, 0, 1)) if new == 'layer0.0.weight' else x


def _from_torchvision(key: str) -> str | None:
    """Name in :class:`GuidedMattingNet` of a weight of torchvision's ResNet-34; None for what the encoder lacks."""
    stem = re.fullmatch(r'(conv1|bn1)\.(.+)', key)
    if stem:
        return f'layer0.{["conv1", "bn1"].index(stem[1])}.{stem[2]}'
    unit = re.fullmatch(r'layer([123])\.([0-3])\.(conv[12]|bn[12]|downsample\.[01])\.(.+)', key)
    if not unit:
        return None
    stage, number, layer, rest = unit[1], int(unit[2]), unit[3], unit[4]
    if stage == '1' or number > 0:
        block = number + 1 if stage == '1' else number
        return f'layer{stage}{"" if stage == "1" else "_2"}.block{block}.convs.{layer}.{rest}'
    if layer.startswith('downsample'):
        return f'layer{stage}_1.proj_{"conv" if layer.endswith("0") else "bn"}.{rest}'
    return f'layer{stage}_1.layer{layer[-1]}.{layer}.{rest}'
