# SPDX-License-Identifier: Apache-2.0
"""The loss of the A2U matting network."""

import torch
from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class MattingLoss(nn.Module):
    r"""Differences of the matte and of the picture composed with it, over the unknown region.

    For each picture, with ``n`` unknown pixels::

        0.5 * sum |alpha - alpha*| / (n + 1) + 0.5 * sum |c - c*| / (n + 1),   c = alpha F + (1 - alpha) B

    where ``|d| = sqrt(d^2 + 1e-12)`` and the second sum runs over the three colours too. The mean over the batch.

    Args:
        alpha_weight (float): Weight of the first sum. Defaults to 0.5.
        composition_weight (float): Weight of the second. Defaults to 0.5.
        loss_name (str): Key in the log; it must begin with ``loss``. Defaults to ``'loss_matting'``.

    Source: https://arxiv.org/abs/2104.14222
    """

    def __init__(
        self, alpha_weight: float = 0.5, composition_weight: float = 0.5, loss_name: str = 'loss_matting'
    ) -> None:
        super().__init__()
        self.alpha_weight = alpha_weight
        self.composition_weight = composition_weight
        self.loss_name = loss_name

    def forward(
        self, pred: Tensor, alpha: Tensor, unknown: Tensor, foreground: Tensor, background: Tensor, image: Tensor
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            pred: Predicted matte, ``(N, 1, H, W)``.
            alpha: True matte, ``(N, 1, H, W)``, 0 to 1.
            unknown: 1 in the unknown region of the trimap, 0 elsewhere, ``(N, 1, H, W)``.
            foreground: ``(N, 3, H, W)``, 0 to 1.
            background: ``(N, 3, H, W)``, 0 to 1.
            image: The picture, ``(N, 3, H, W)``, 0 to 1.

        Raises:
            ValueError: If the shapes do not fit.
        """
        shape = pred.shape
        for name, x, channels in (
            ('alpha', alpha, 1),
            ('unknown', unknown, 1),
            ('foreground', foreground, 3),
            ('background', background, 3),
            ('image', image, 3),
        ):
            wanted = (shape[0], channels, *shape[2:])
            if tuple(x.shape) != wanted:
                raise ValueError(f'{name} must have shape {wanted} for a matte of {tuple(shape)}, got {tuple(x.shape)}')
        count = unknown.sum((1, 2, 3)) + 1
        composed = pred * foreground + (1 - pred) * background
        of_alpha = _sum_of_differences(pred - alpha, unknown) / count
        of_composition = _sum_of_differences(composed - image, unknown) / count
        return (self.alpha_weight * of_alpha + self.composition_weight * of_composition).mean()


def _sum_of_differences(difference: Tensor, unknown: Tensor) -> Tensor:
    # A known pixel adds the root of the small number, 1e-6, as published.
    return torch.sqrt((difference * unknown).square() + 1e-12).sum((1, 2, 3))
