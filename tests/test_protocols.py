# SPDX-License-Identifier: Apache-2.0
"""The training protocols of the ADE20K configs against what was published; docs/protocols.md has the list."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')
from mmengine import Config, DefaultScope
from mmengine.registry import MODEL_WRAPPERS, MODELS, PARAM_SCHEDULERS
from mmengine.runner import Runner

CONFIGS = Path(__file__).parents[1] / 'configs'
SEGFORMER = 'segformer/segformer_mit-b1_1xb16-160k_ade20k-512x512.py'
MASKFORMER = 'maskformer/maskformer_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'
MASK2FORMER = 'mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'
#: What the published training log of SAPA-B prints as learning rate, by iteration counted from 1.
LOGGED = {50: '1.959e-06', 1450: '5.744e-05', 1500: '5.940e-05', 1550: '5.942e-05', 16050: '5.398e-05'}


def read(config):
    return Config.fromfile(CONFIGS / config)


def learning_rates(cfg, iterations):
    """The learning rate of each of these iterations, counted from 1, as the built schedulers set it."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer)) for s in cfg.param_scheduler]
    rates = {}
    for iteration in range(1, max(iterations) + 1):
        if iteration in iterations:
            rates[iteration] = optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def test_segformer_has_the_logged_learning_rates():
    rates = learning_rates(read(SEGFORMER), LOGGED)
    assert {iteration: f'{rate:.3e}' for iteration, rate in rates.items()} == LOGGED


def poly(base, power, warmup):
    """Poly decay of 160k iterations from the first one on, times a linear warm-up from a millionth."""

    def rate(iteration):
        done = iteration - 1
        share = min(done / warmup, 1) if warmup else 1
        return base * (1 - done / 160000) ** power * (1e-6 * (1 - share) + share)

    return rate


@pytest.mark.parametrize(
    ('config', 'rate'),
    [
        (SEGFORMER, poly(6e-5, 1.0, 1500)),
        (MASKFORMER, poly(6e-5, 0.9, 1500)),
        (MASK2FORMER, poly(1e-4, 0.9, 0)),
    ],
    ids=['segformer', 'maskformer', 'mask2former'],
)
def test_learning_rates_are_the_formula(config, rate):
    iterations = (1, 2, *LOGGED, 1501, 30000)
    for iteration, built in learning_rates(read(config), iterations).items():
        assert built == pytest.approx(rate(iteration), rel=1e-9), iteration


@pytest.mark.parametrize('config', [MASKFORMER, MASK2FORMER], ids=['maskformer', 'mask2former'])
def test_mask_models_crop_anywhere_and_evaluate_every_5000(config):
    cfg = read(config)
    (crop,) = (t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop')
    assert crop.cat_max_ratio == 1.0
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 5000
    assert cfg.train_cfg.max_iters == 160000


def test_segformer_crops_and_evaluates_as_published():
    cfg = read(SEGFORMER)
    (crop,) = (t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop')
    assert crop.cat_max_ratio == 0.75
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 16000


@pytest.mark.parametrize('distributed', [True, False])
def test_segformer_normalises_over_all_gpus(distributed):
    """mmengine turns BN into SyncBN where there are several processes, and only there."""
    pytest.importorskip('mmseg')
    cfg = read(SEGFORMER)
    cfg.model.backbone.update(num_layers=[1, 1, 1, 1], init_cfg=None)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    logger = SimpleNamespace(info=print, error=print)
    MODEL_WRAPPERS.register_module(name='TestWrapper', module=Wrapper)
    try:
        runner = SimpleNamespace(distributed=distributed, cfg=cfg, logger=logger)
        wrapped = Runner.wrap_model(runner, dict(type='TestWrapper'), model)
    finally:
        MODEL_WRAPPERS.module_dict.pop('TestWrapper')
    norms = [m for m in wrapped.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and {isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms} == {distributed}
