# SPDX-License-Identifier: Apache-2.0
"""Hooks for mmengine's Runner."""

from .exact_resume_hook import ExactResumeHook

__all__ = ['ExactResumeHook']
