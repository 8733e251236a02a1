# SPDX-License-Identifier: Apache-2.0
"""Hooks for mmengine's Runner."""

from .draw_features_hook import DrawFeaturesHook
from .exact_resume_hook import ExactResumeHook
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = ['DrawFeaturesHook', 'ExactResumeHook', 'SafeCheckpointHook']
