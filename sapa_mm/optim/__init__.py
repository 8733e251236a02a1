# SPDX-License-Identifier: Apache-2.0
"""Optimizer wrappers for mmengine's Runner."""

from .cpu_amp import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper']
