# SPDX-License-Identifier: Apache-2.0
"""Imported by trainings of ``test_tools_training.py`` through ``custom_imports``."""

from contextlib import contextmanager

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS

from sapa_mm.upsamplers import BaseUpsampler


@HOOKS.register_module()
class PrintDtypeHook(Hook):
    """Print the data type of what the first upsampler returns."""

    def before_train(self, runner):
        upsampler = next(module for module in runner.model.modules() if isinstance(module, BaseUpsampler))
        upsampler.register_forward_hook(lambda module, args, out: print('upsampled', out.dtype))


@OPTIM_WRAPPERS.register_module()
class CPUFloat16OptimWrapper(OptimWrapper):
    """What ``AmpOptimWrapper(dtype='float16')`` is on a GPU, with a fixed loss scale."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.float16):
            yield

    def scale_loss(self, loss):
        return super().scale_loss(loss) * 128

    def step(self, **kwargs):
        for group in self.param_groups:
            for parameter in group['params']:
                parameter.grad.div_(128)
        super().step(**kwargs)
