# SPDX-License-Identifier: Apache-2.0
"""A resumed run that is bit for bit the run that was never interrupted."""

import itertools
import random

import numpy as np
import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sapa_mm.registry import HOOKS


def _seed_everything(*key):
    """Seed ``random``, numpy and torch (CPU and GPU) from a tuple of non-negative integers."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


class _KeyedDataset(Dataset):
    """A data set whose items are seeded by their place in the training, whichever process loads them."""

    def __init__(self, dataset, key):
        self.dataset = dataset
        self.key = key

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, item):
        number, place, index = item
        _seed_everything(*self.key, number, place)
        return self.dataset[index]

    def __getattr__(self, name):
        # Hooks ask the loader's data set for its metainfo and the like. Private names stay out: pickle asks for some
        # before `dataset` exists, and torch would call a `__getitems__` with keys instead of indices.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class _KeyedBatches:
    """A batch sampler that sends the number of the batch and the place in it along with each index.

    Args:
        batches: The batch sampler to number.
        sampler: The sampler below it, which mmengine tells the epoch.
        first: Called when an iteration starts; returns the number of its first batch.
        endless: Whether to go through ``batches`` again and again, from batch 0 on. The batches before ``first()``
            are then drawn and dropped, which costs their indices and loads nothing.
    """

    def __init__(self, batches, sampler, first, endless):
        self.batches = batches
        self.sampler = sampler
        self.first = first
        self.endless = endless

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        first = self.first()
        stream = itertools.islice(self._again_and_again(), first, None) if self.endless else self.batches
        for number, batch in enumerate(stream, first):
            # Place 0 belongs to the model, see ExactResumeHook.before_train_iter.
            yield [(number, place, index) for place, index in enumerate(batch, 1)]

    def _again_and_again(self):
        for epoch in itertools.count():
            if epoch > 0 and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            empty = True
            for batch in self.batches:
                empty = False
                yield batch
            if empty:
                raise ValueError('the training data has no complete batch')


class _Stream:
    """Stands in for the data iterator of mmengine's ``IterBasedTrainLoop``; ``loader`` starts at the right batch."""

    def __init__(self, loader, ignore):
        self.loader = loader
        self.iterator = None
        self.ignore = ignore

    def __iter__(self):
        return self

    def __next__(self):
        if self.ignore > 0:
            self.ignore -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.loader)
        return next(self.iterator)

    def skip_iter(self, num_iters):
        """Do nothing: the loader has skipped these batches."""


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Make all randomness of training a function of (seed, rank, iteration), so that resuming repeats it exactly.

    mmengine restores weights, optimizer, schedules and the place in the sampler, but no random state: after a
    resume, augmentations and dropout differ from those of the uninterrupted run. The states cannot simply be saved
    either, because data workers prefetch in processes of their own, and because only the first rank writes
    checkpoints. So this hook seeds ``random``, numpy and torch

    - before each sample, in the process that loads it, from (seed, rank, iteration, place in the batch), and
    - before each training step, from (seed, rank, iteration).

    Nothing is stored: any checkpoint of a run with this hook can be resumed exactly, with any number of workers, as
    long as seed, number of ranks and batch size stay the same. Validation in between changes nothing. A seed that
    mmengine drew itself comes back from the checkpoint.

    ``IterBasedTrainLoop`` resumes at any iteration; ``EpochBasedTrainLoop`` at the end of an epoch, as mmengine does.
    Not covered: gradients accumulated over several iterations when the checkpoint lies between two optimizer
    steps, transforms that keep a cache of earlier samples, data sets without length (left alone, with a warning), and
    GPU operators that are not deterministic.

    Registered as ``sapa_mm.ExactResumeHook``; ``tools/train.py`` adds it to every config.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        """Put keyed samples in place of the loop's own; the checkpoint is loaded by now, no batch is drawn yet."""
        self._key = (runner.seed, runner.rank)
        loop = runner.train_loop
        loader = loop.dataloader
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            runner.logger.warning('ExactResumeHook: this data set has no order to return to; resuming is not exact.')
            return
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if hasattr(sampler, 'seed') and not runner._randomness_cfg.get('diff_rank_seed', False):
            # The sampler was built before the checkpoint brought its seed back.
            sampler.seed = runner.seed
        by_iter = hasattr(loop, 'dataloader_iterator')
        loop.dataloader = DataLoader(
            _KeyedDataset(loader.dataset, self._key),
            batch_sampler=_KeyedBatches(loader.batch_sampler, sampler, first=lambda: loop.iter, endless=by_iter),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )
        if by_iter:
            # mmengine without `skip_iter` (0.10.7 and older) draws `loop.iter` batches itself after this hook.
            ignore = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter
            loop.dataloader_iterator = _Stream(loop.dataloader, ignore)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Seed dropout, stochastic depth and whatever else a training step draws."""
        _seed_everything(*self._key, runner.iter, 0)
