# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on a CPU."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast

from sapa_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` that runs the forward pass in bfloat16 autocast on the CPU.

    mmengine's ``AmpOptimWrapper`` refuses to work without an accelerator. bfloat16 has the range of float32, so no
    loss scale is needed. Takes the arguments of ``OptimWrapper``; registered as ``sapa_mm.CPUAmpOptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model):
        """Autocast in addition to what ``OptimWrapper`` does."""
        with super().optim_context(model), autocast(device_type='cpu', dtype=torch.bfloat16):
            yield
