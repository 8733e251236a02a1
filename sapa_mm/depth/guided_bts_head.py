# SPDX-License-Identifier: Apache-2.0
"""The BTS depth decoder, with a guided upsampler at its first four steps."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import MODELS
from ..upsamplers import build_upsampler
from ..upsamplers.base import fit

#: Focal length, in pixels, that the depths of a model for KITTI belong to.
KITTI_FOCAL_LENGTH = 715.0873
DILATIONS = (3, 6, 12, 18, 24)


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv(in_channels, out_channels), nn.ELU(inplace=True))


def named(**modules: nn.Module) -> nn.Sequential:
    """A sequence whose members have names, those of the published parameters."""
    return nn.Sequential(OrderedDict(modules))


def reduction(in_channels: int, out_channels: int, final: str, last: nn.Module | None, final_channels: int):
    """1x1 convolutions to ``out_channels``, then to half of that and so on down to 8, then to ``final_channels``."""
    layers = {}
    while out_channels >= 8:
        layers[f'inter_{in_channels}_{out_channels}'] = nn.Sequential(
            conv(in_channels, out_channels, 1), nn.ELU(inplace=True)
        )
        in_channels, out_channels = out_channels, out_channels // 2
    end = conv(in_channels, final_channels, 1)
    layers[final] = end if last is None else nn.Sequential(end, last)
    return named(reduc=named(**layers))


@MODELS.register_module()
class GuidedBTSHead(BaseDecodeHead):
    r"""The decoder of BTS, "from big to small", whose steps to the next finer level are guided by that level.

    At strides 8, 4 and 2 it predicts a plane for each position, which gives the depth of all pixels that the position
    covers (:func:`local_planes`); the three maps join the features of the finest step. Each of the first four steps is
    ``conv3x3(upsamplers[i](x, inputs[i]))``, whose upsampling is nearest in the original. The fifth, to the size of the
    image, has no guide and stays nearest.

    Parameters have the published names, whose checkpoints load. The published decoder needs sides divisible by 32. Here
    a level may also be rounded up, as a ResNet's are: maps begin at the same place, and what sticks out at the right
    and at the bottom is cut off.

    Args:
        in_channels (Sequence[int]): Channels of the encoder's maps of strides 2, 4, 8, 16 and 32. Defaults to those of
            :class:`sapa_mm.ResNetWithStem` of depth 50.
        channels (int): Width of the decoder at its first step, divisible by 32. Defaults to 512.
        max_depth (float): Greatest depth that it can predict, in metres. Defaults to 10.0.
        focal_length (float, optional): Focal length in pixels that the predicted depth belongs to. If given, the depth
            of an image is multiplied by its own, ``focal`` of its meta information, over this one. 715.0873 for KITTI;
            None for NYU, where all images are of one camera. Defaults to None.
        upsample_cfg (dict, optional): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its
            channels here. None is nearest. Defaults to None.
        norm_cfg (dict): Norms, of mmcv. Those between the two convolutions of a dilated branch have an ``eps`` of
            1e-5, as published. Defaults to BN of momentum 0.01 and eps 1.1e-5.
        loss_decode (dict or list[dict]): Losses with ``forward(depth, truth)`` and a ``loss_name``. Defaults to
            :class:`sapa_mm.SILogLoss`.
        init_cfg (dict or list[dict], optional): Initialisation of mmengine. Defaults to Xavier uniform for
            convolutions; upsamplers keep their own.

    Raises:
        TypeError, ValueError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
        ValueError: If channels or depths are out of range.

    Source: https://arxiv.org/abs/1907.10326; its values are checked against cleinc/bts@5e3406b
    """

    num_classes = 1
    out_channels = 1
    input_transform = None
    align_corners = False

    def __init__(
        self,
        in_channels: Sequence[int] = (64, 256, 512, 1024, 2048),
        channels: int = 512,
        max_depth: float = 10.0,
        focal_length: float | None = None,
        upsample_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        loss_decode: dict | Sequence[dict] | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        # Past the parent's constructor, which builds a classifier.
        BaseModule.__init__(
            self, dict(type='Xavier', distribution='uniform', layer='Conv2d') if init_cfg is None else init_cfg
        )
        if len(in_channels) != 5:
            raise ValueError(f'in_channels must be those of strides 2, 4, 8, 16 and 32, got {tuple(in_channels)}')
        if channels < 32 or channels % 32:
            raise ValueError(f'channels must be a positive multiple of 32, got {channels}')
        for name, value in (('max_depth', max_depth), ('focal_length', focal_length)):
            if value is not None and not value > 0:
                raise ValueError(f'{name} must be positive, got {value}')
        self.in_channels = in_channels
        self.channels = channels
        self.max_depth = max_depth
        self.focal_length = focal_length
        norm_cfg = dict(type='BN', momentum=0.01, eps=1.1e-5) if norm_cfg is None else norm_cfg
        losses = loss_decode or dict(type='sapa_mm.SILogLoss')
        self.loss_decode = ModuleList(MODELS.build(cfg) for cfg in ([losses] if isinstance(losses, dict) else losses))

        def norm(channels: int, **options) -> nn.Module:
            return build_norm_layer({**norm_cfg, **options}, channels)[1]

        def upconv(in_channels: int, out_channels: int) -> nn.Sequential:
            return named(conv=conv(in_channels, out_channels), elu=nn.ELU(inplace=True))

        def atrous(in_channels: int, dilation: int) -> nn.Sequential:
            layers = nn.Sequential(
                nn.ReLU(),
                conv(in_channels, half, 1),
                norm(half, eps=1e-5),
                nn.ReLU(inplace=True),
                conv(half, quarter, dilation=dilation),
            )
            first = {} if dilation == DILATIONS[0] else dict(first_bn=norm(in_channels))
            return named(atrous_conv=named(**first, aconv_sequence=layers))

        half, quarter, eighth, sixteenth = (channels // n for n in (2, 4, 8, 16))
        stem, layer1, layer2, layer3, layer4 = in_channels
        self.upconv5, self.bn5 = upconv(layer4, channels), norm(channels)
        self.conv5 = block(channels + layer3, channels)
        self.upconv4, self.bn4 = upconv(channels, half), norm(half)
        self.conv4, self.bn4_2 = block(half + layer2, half), norm(half)
        self.daspp_3 = atrous(half, 3)
        for i, dilation in enumerate(DILATIONS[1:], start=1):
            setattr(self, f'daspp_{dilation}', atrous(half + layer2 + i * quarter, dilation))
        self.daspp_conv = block(half + len(DILATIONS) * quarter, quarter)
        self.reduc8x8 = reduction(quarter, quarter, 'plane_params', None, 3)
        self.upconv3, self.bn3 = upconv(quarter, quarter), norm(quarter)
        self.conv3 = block(quarter + layer1 + 1, quarter)
        self.reduc4x4 = reduction(quarter, eighth, 'plane_params', None, 3)
        self.upconv2, self.bn2 = upconv(quarter, eighth), norm(eighth)
        self.conv2 = block(eighth + stem + 1, eighth)
        self.reduc2x2 = reduction(eighth, sixteenth, 'plane_params', None, 3)
        self.upconv1 = upconv(eighth, sixteenth)
        self.reduc1x1 = reduction(sixteenth, sixteenth // 2, 'final', nn.Sigmoid(), 1)
        self.conv1 = block(sixteenth + 4, sixteenth)
        self.get_depth = nn.Sequential(conv(sixteenth, 1), nn.Sigmoid())
        self.upsamplers = None
        if upsample_cfg is not None:
            features = (quarter, quarter, channels, layer4)  # of what becomes the size of inputs[0], ..., inputs[3]
            self.upsamplers = ModuleList(
                build_upsampler(upsample_cfg, feature, guide) for feature, guide in zip(features, in_channels)
            )

    def forward(self, inputs: Sequence[Tensor], focal: Tensor | None = None) -> Tensor:
        """The depth of :meth:`decode`, ``(N, 1, H, W)`` in metres."""
        return self.decode(inputs, focal)[-1]

    def decode(self, inputs: Sequence[Tensor], focal: Tensor | None = None) -> tuple[Tensor, ...]:
        """Decode, and show what the depth is made of.

        Args:
            inputs: The encoder's maps of strides 2, 4, 8, 16 and 32, the size of each at most half of the one before,
                rounded up.
            focal: Focal length of each image in pixels, ``(N,)``; needed if the head has a ``focal_length``.

        Returns:
            Five maps ``(N, 1, H, W)`` of twice the size of the first input: the depth by planes of strides 8, 4 and 2
            as a part of ``max_depth``, the reduced feature in (0, 1), and the depth in metres.

        Raises:
            ValueError: If the inputs are not five, or ``focal`` is needed and missing.
        """
        if len(inputs) != 5:
            raise ValueError(f'the decoder needs 5 maps, of strides 2, 4, 8, 16 and 32, got {len(inputs)}')
        if self.focal_length is not None and focal is None:
            raise ValueError(f'a head with focal_length={self.focal_length} needs the focal length of each image')
        stem, layer1, layer2, layer3, layer4 = inputs
        size = [2 * side for side in stem.shape[2:]]

        x = self.bn5(self.upconv5(self._upsample(3, F.relu(layer4), layer3)))
        x = self.conv5(torch.cat([x, layer3], 1))
        x = self.bn4(self.upconv4(self._upsample(2, x, layer2)))
        wide = torch.cat([x, layer2], 1)
        x = self.bn4_2(self.conv4(wide))
        branches = [self.daspp_3(x)]
        for dilation in DILATIONS[1:]:
            wide = torch.cat([wide, branches[-1]], 1)
            branches.append(getattr(self, f'daspp_{dilation}')(wide))
        x = self.daspp_conv(torch.cat([x, *branches], 1))
        depth8 = local_planes(self.reduc8x8(x), 8, size)

        x = self.bn3(self.upconv3(self._upsample(1, x, layer1)))
        x = self.conv3(torch.cat([x, layer1, depth8[:, :, ::4, ::4]], 1))
        depth4 = local_planes(self.reduc4x4(x), 4, size)

        x = self.bn2(self.upconv2(self._upsample(0, x, stem)))
        x = self.conv2(torch.cat([x, stem, depth4[:, :, ::2, ::2]], 1))
        depth2 = local_planes(self.reduc2x2(x), 2, size)

        x = self.upconv1(F.interpolate(x, size, mode='nearest'))
        reduced = self.reduc1x1(x)
        x = self.conv1(torch.cat([x, reduced, depth2, depth4, depth8], 1))
        depth = self.max_depth * self.get_depth(x)
        if self.focal_length is not None:
            # in float32 for any dtype of the maps, as published
            depth = depth * (focal.float() / self.focal_length).view(-1, 1, 1, 1).to(depth.device)
        return depth8, depth4, depth2, reduced, depth

    def _upsample(self, level: int, x: Tensor, guide: Tensor) -> Tensor:
        if self.upsamplers is None:
            return F.interpolate(x, guide.shape[2:], mode='nearest')
        return self.upsamplers[level](x, guide)

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: Sequence, train_cfg: dict | None = None) -> dict:
        """Losses of a batch, by name.

        Args:
            inputs: As :meth:`decode`.
            batch_data_samples: Of each image ``gt_depth_map``, ``(1, H, W)`` in metres, 0 where unknown.
            train_cfg: Not used.
        """
        focal = self._focal([sample.metainfo for sample in batch_data_samples])
        return self.loss_by_feat(self(inputs, focal), batch_data_samples)

    def loss_by_feat(self, depth: Tensor, batch_data_samples: Sequence) -> dict:
        """Losses of predicted depth ``(N, 1, H, W)``."""
        truth = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        depth = fit(depth, truth.shape[2:], 2)
        losses = {}
        for loss in self.loss_decode:
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + loss(depth, truth)
        return losses

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: Sequence[dict], test_cfg: dict | None = None
    ) -> Tensor:
        """Depth of the size of the images, ``(N, 1, H, W)`` in metres."""
        depth = self(inputs, self._focal(batch_img_metas))
        # The size of the batch is where mmseg keeps it for its other heads: in slide inference it is a torch.Size.
        meta = batch_img_metas[0]
        padded = 'pad_shape' in meta and not isinstance(meta['img_shape'], torch.Size)
        return fit(depth, tuple(meta['pad_shape' if padded else 'img_shape'][:2]), 2)

    def _focal(self, metas: Sequence[dict]) -> Tensor | None:
        if self.focal_length is None:
            return None
        if any('focal' not in meta for meta in metas):
            raise ValueError("the head has a focal_length: add 'focal' to the meta_keys of PackSegInputs")
        return torch.tensor([float(meta['focal']) for meta in metas])


def local_planes(parameters: Tensor, ratio: int, size: Sequence[int]) -> Tensor:
    """Depth of the pixels of each cell on the plane that the cell predicts.

    With ``t = sigmoid(parameters)``, ``theta = t0 pi / 3`` and ``phi = 2 pi t1`` the angles of the unit normal ``n``,
    and ``u`` and ``v`` the place of a pixel in its cell, in cells from the centre along the width and the height:
    ``depth = t2 / (n1 u + n2 v + n3)``.

    Args:
        parameters: ``(N, 3, h, w)``.
        ratio: Side of a cell in pixels.
        size: Height and width to give, at most ``ratio`` times ``(h, w)``.

    Returns:
        ``(N, 1, *size)``, as a part of the greatest depth. It can be above 1, or negative where a plane is steep.
    """
    n, _, h, w = parameters.shape
    wide = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    tilt, turn, distance = wide.sigmoid()[:, :, :, None, :, None].unbind(1)
    theta, phi = tilt * (math.pi / 3), turn * (2 * math.pi)
    u = (torch.arange(ratio, device=wide.device, dtype=wide.dtype) - (ratio - 1) / 2) / ratio
    v = u[:, None, None]
    depth = distance / (theta.sin() * (phi.cos() * u + phi.sin() * v) + theta.cos())
    depth = depth.reshape(n, 1, h * ratio, w * ratio)
    return depth[:, :, : size[0], : size[1]].to(parameters.dtype)
