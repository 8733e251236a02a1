# SPDX-License-Identifier: Apache-2.0
"""Image matting, the A2U baseline of Composition-1k: network, loss, errors."""

from .losses import MattingLoss
from .metrics import matting_errors
from .network import GuidedMattingNet

__all__ = ['GuidedMattingNet', 'MattingLoss', 'matting_errors']
