# SPDX-License-Identifier: Apache-2.0
"""The scale-invariant logarithmic loss, pooled over a batch."""

import torch
from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class SILogLoss(nn.Module):
    r"""``loss_weight * sqrt(mean(d^2) - variance_focus * mean(d)^2)`` with ``d = log(depth) - log(truth)``.

    The means are over the valid pixels of the whole batch, those whose truth is greater than ``min_depth``. An error
    that all pixels share counts ``1 - variance_focus`` of what one that differs does. mmseg's ``SiLogLoss`` is another
    one: it averages images, with 0.5 for the focus and without the weight.

    Without a valid pixel, and where the root is of 0, the loss is 0 and so is its gradient.

    Args:
        variance_focus (float): Between 0 and 1. Defaults to 0.85.
        min_depth (float): Least true depth that counts, exclusive, in metres, at least 0. Defaults to 0.1, for indoor
            scenes; 1.0 is that of driving scenes.
        loss_weight (float): Factor. Defaults to 10.0.
        loss_name (str): Key of the loss; it counts if it begins with ``loss``. Defaults to ``'loss_silog'``.

    Raises:
        ValueError: If an option is out of range.

    Source: https://arxiv.org/abs/1907.10326
    """

    def __init__(
        self,
        variance_focus: float = 0.85,
        min_depth: float = 0.1,
        loss_weight: float = 10.0,
        loss_name: str = 'loss_silog',
    ) -> None:
        super().__init__()
        if not 0 <= variance_focus <= 1:
            raise ValueError(f'variance_focus must be between 0 and 1, got {variance_focus}')
        if not min_depth >= 0:
            raise ValueError(f'min_depth must be at least 0, got {min_depth}')
        self.variance_focus = variance_focus
        self.min_depth = min_depth
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, depth: Tensor, truth: Tensor) -> Tensor:
        """Compare.

        Args:
            depth: Predicted depth, positive, any shape.
            truth: True depth, of the same shape and unit.

        Returns:
            The loss, a scalar, float32 or wider.

        Raises:
            ValueError: If the shapes differ.
        """
        if depth.shape != truth.shape:
            raise ValueError(
                f'prediction and truth must have one shape, got {tuple(depth.shape)} and {tuple(truth.shape)}'
            )
        dtype = torch.promote_types(depth.dtype, torch.float32)
        depth, truth = depth.to(dtype), truth.to(dtype)
        valid = truth > self.min_depth
        if not valid.any():
            return 0 * depth.sum()
        error = depth[valid].log() - truth[valid].log()
        spread = error.square().mean() - self.variance_focus * error.mean().square()
        # The root has no slope at 0, and with a focus of 1 rounding can leave less.
        spread = torch.where(spread > 0, spread, torch.ones_like(spread)).sqrt() * (spread > 0)
        return self.loss_weight * spread
