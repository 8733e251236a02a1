#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Every operator once, forward and backward, small: for compute-sanitizer. The argument is a device.

The compiled ones for windows with and without a kernel of their own; of point affiliation and the norm Triton's too,
where it serves them.
"""

import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, inputs_of
from helpers import random_maps

from sapa_mm import ops
from sapa_mm.ops import library

#: Of the options in CASES those that the public functions call by name; the others have defaults.
PUBLIC = dict(
    point_affiliation=['kernel_size'],
    feature_assembly=['kernel_size', 'groups'],
    deformable_scores=['groups'],
    deformable_assembly=['groups'],
    channel_norm=['eps'],
    norm_projection=['eps'],
)


def run(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    torch.autograd.grad(output, leaves, torch.ones_like(output))


def main(device):
    count = 0
    for name, (_, options, _) in CASES.items():
        for layout in ('contiguous', 'channels_last'):
            inputs = inputs_of(name, layout, device=device)
            run(functools.partial(getattr(ops, name), **dict(zip(PUBLIC[name], options))), inputs)
            count += 1
    for first in library.BACKENDS[:2]:
        for dtype in (torch.float16, torch.float32):
            # the second of whole vectors of channels
            for kernel_sizes, D, C, layout in (
                ((1, 3, 5, 7, 9), 5, 19, torch.contiguous_format),
                ((3, 5), 16, 24, torch.channels_last),
            ):
                for kernel_size in kernel_sizes:
                    maps = random_maps((2, D, 18, 36), (2, D, 9, 18), (2, C, 9, 18), dtype=dtype, device=device)
                    maps = [x.contiguous(memory_format=layout) for x in maps]
                    with library.prefer(first):
                        run(functools.partial(ops.point_affiliation, kernel_size=kernel_size), maps)
                    count += 1
            x = random_maps((2, 19, 9, 18), dtype=dtype, device=device)
            parameters = random_maps((5, 19), (5,), dtype=torch.float32, device=device)
            with library.prefer(first):
                run(ops.norm_projection, [*x, *parameters])
            count += 1
    if device == 'cuda':
        torch.cuda.synchronize()
    print(f'{count} cases on {device}')


if __name__ == '__main__':
    main(sys.argv[1])
