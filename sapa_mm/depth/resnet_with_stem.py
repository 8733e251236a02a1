# SPDX-License-Identifier: Apache-2.0
"""A ResNet that also gives the map of its stem."""

from mmseg.models.backbones import ResNet
from torch import Tensor

from ..registry import MODELS


@MODELS.register_module()
class ResNetWithStem(ResNet):
    """ResNet of mmseg whose outputs begin with the stem after its ReLU, the finest map of an encoder-decoder.

    Parameters have the names of the parent and of torchvision.

    Args:
        *args: As the parent.
        freeze_published (bool): Whether to train as BTS does: the convolution of the stem and the weights of all norms
            but those of the shortcuts stay as they were loaded. Their running statistics still follow the data, other
            than with the parent's ``frozen_stages`` and ``norm_eval``. Defaults to False.
        **kwargs: As the parent.

    Source: https://arxiv.org/abs/1907.10326 for what is frozen
    """

    def __init__(self, *args, freeze_published: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.freeze_published = freeze_published
        self._freeze_published()

    def _freeze_published(self) -> None:
        if self.freeze_published:
            for name, parameter in self.named_parameters():
                if name.startswith(('conv1.', 'stem.')) or '.bn' in f'.{name}':
                    parameter.requires_grad = False

    def train(self, mode: bool = True) -> 'ResNetWithStem':
        super().train(mode)
        self._freeze_published()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            x: Images, ``(N, in_channels, H, W)``, any size.

        Returns:
            The stem, ``(N, stem_channels, ceil(H/2), ceil(W/2))``, then the stages of ``out_indices``, as the parent.
        """
        stem = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        outs = [stem]
        x = self.maxpool(stem)
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)
