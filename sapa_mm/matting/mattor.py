# SPDX-License-Identifier: Apache-2.0
"""From pictures with trimaps to mattes: what surrounds a matting network in mmengine's Runner."""

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional as F

from ..registry import MODELS
from .metrics import UNKNOWN
from .network import DIVISOR

IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


class MattingSample(BaseDataElement):
    """What is known of one picture: ``trimap``, and where they are known ``alpha``, ``foreground``, ``background``."""


@MODELS.register_module()
class MattingPreprocessor(BaseDataPreprocessor):
    """Normalise the colours and join the trimap as a fourth channel.

    Args:
        mean (sequence of float): Of red, green and blue, 0 to 255. Defaults to ImageNet's.
        std (sequence of float): Likewise.
        non_blocking (bool): Passed on to the move to the device. Defaults to False.
    """

    def __init__(self, mean=IMAGENET['mean'], std=IMAGENET['std'], non_blocking: bool = False) -> None:
        super().__init__(non_blocking)
        for name, x in (('mean', mean), ('std', std)):
            if len(x) != 3:
                raise ValueError(f'{name} must have 3 values, got {len(x)}')
            self.register_buffer(name, torch.tensor(x, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Make a batch.

        Args:
            data: ``inputs``, a list of RGB pictures ``(3, H, W)`` uint8, and ``data_samples``, a list of
                :class:`MattingSample`.
            training: Not used.

        Returns:
            ``inputs``, ``(N, 4, H, W)``, both sides brought to multiples of 16 by reflection on the right and at the
            bottom; and ``data_samples``.

        Raises:
            ValueError: If the pictures differ in size, or a trimap's size is not that of its picture.
        """
        data = self.cast_data(data)
        images, samples = list(data['inputs']), data['data_samples']
        sizes = {tuple(image.shape[1:]) for image in images}
        if len(sizes) != 1:
            raise ValueError(f'the pictures of a batch must have one size, got {sorted(sizes)}')
        inputs = []
        for image, sample in zip(images, samples):
            if sample.trimap.shape != image.shape[1:]:
                raise ValueError(
                    f'the trimap must have the size of its picture, got {tuple(sample.trimap.shape)} and '
                    f'{tuple(image.shape[1:])}' + (f' for {sample.img_path}' if 'img_path' in sample else '')
                )
            inputs.append(torch.cat([(image.float() - self.mean) / self.std, sample.trimap[None].float() / 255]))
        return dict(inputs=pad_to_divisor(torch.stack(inputs)), data_samples=samples)


def pad_to_divisor(x: Tensor) -> Tensor:
    """Bring both sides of ``(N, C, H, W)`` to multiples of 16 by reflection, on the right and at the bottom.

    A side too short to be reflected so far repeats its last row or column.
    """
    height, width = (-size % DIVISOR for size in x.shape[2:])
    for amounts, side in (((0, width, 0, 0), x.shape[3]), ((0, 0, 0, height), x.shape[2])):
        if any(amounts):
            x = F.pad(x, amounts, mode='reflect' if max(amounts) < side else 'replicate')
    return x


@MODELS.register_module()
class Mattor(BaseModel):
    """A matting model: a network that takes RGB and trimap, and a loss.

    The known regions of a prediction are those of the trimap.

    Args:
        backbone (dict): The network, ``(N, 4, H, W)`` to ``(N, 1, H, W)``, such as
            ``dict(type='sapa_mm.GuidedMattingNet', upsample_cfg=dict(type='sapa_mm.SAPA'))``.
        loss (dict): The loss. Defaults to ``dict(type='sapa_mm.MattingLoss')``.
        data_preprocessor (dict): Defaults to ``dict(type='sapa_mm.MattingPreprocessor')``.
        init_cfg (dict or list[dict], optional): Initialisation on top of the network's own.
    """

    def __init__(
        self,
        backbone: dict,
        loss: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor or dict(type='sapa_mm.MattingPreprocessor'), init_cfg)
        self.backbone = MODELS.build(backbone)
        self.loss_module = MODELS.build(loss or dict(type='sapa_mm.MattingLoss'))

    def forward(self, inputs: Tensor, data_samples: list[MattingSample] | None = None, mode: str = 'tensor'):
        """Predict, or compute the loss.

        Args:
            inputs: ``(N, 4, H, W)`` from the preprocessor.
            data_samples: What is known of each picture; not needed by ``'tensor'``.
            mode: ``'tensor'`` (the raw matte ``(N, 1, H, W)``), ``'predict'`` or ``'loss'``.

        Returns:
            A tensor, a list of samples with ``pred_alpha`` ``(H, W)`` uint8, or a dict with the loss.

        Raises:
            ValueError: If ``mode`` is not one of these.
        """
        if mode not in ('tensor', 'predict', 'loss'):
            raise ValueError(f"mode must be 'tensor', 'predict' or 'loss', got {mode!r}")
        raw = self.backbone(inputs)
        if mode == 'tensor':
            return raw
        return self._loss(raw, data_samples) if mode == 'loss' else self._predict(raw, data_samples)

    def _loss(self, raw, samples):
        def batch(name):
            x = torch.stack([sample.get(name) for sample in samples]).float() / 255
            return x[:, None] if x.dim() == 3 else x

        unknown = torch.stack([sample.trimap for sample in samples])[:, None] == UNKNOWN
        raw = raw[..., : unknown.shape[2], : unknown.shape[3]]
        maps = (batch(name) for name in ('alpha', 'foreground', 'background', 'image'))
        alpha, foreground, background, image = maps
        loss = self.loss_module(raw, alpha, unknown.to(raw.dtype), foreground, background, image)
        return {self.loss_module.loss_name: loss}

    def _predict(self, raw, samples):
        for matte, sample in zip(raw[:, 0], samples):
            trimap = sample.trimap
            matte = matte[: trimap.shape[0], : trimap.shape[1]].float().clamp(0, 1) * 255
            sample.pred_alpha = torch.where(trimap == UNKNOWN, matte.round().to(torch.uint8), trimap).cpu()
        return samples


def trimap_of(values: np.ndarray, path: str = 'the trimap') -> np.ndarray:
    """A trimap that has 0, 128 and 255 alone.

    Args:
        values: ``(H, W)`` uint8; whatever is neither 0 nor 255 is unknown.
        path: What to call it in an error.

    Raises:
        ValueError: If it is no map of 8-bit values.
    """
    if values.ndim != 2 or values.dtype != np.uint8:
        raise ValueError(f'{path} must be an 8-bit map of one channel, got {values.dtype} of shape {values.shape}')
    return np.where((values == 0) | (values == 255), values, UNKNOWN).astype(np.uint8)
