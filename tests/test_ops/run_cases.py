#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Every operator once, forward and backward, small: for compute-sanitizer. The argument is a device.

The compiled ones for windows with and without a kernel of their own; of point affiliation and the norm Triton's too,
where it serves them.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, inputs_of
from helpers import random_maps

from sapa_mm import ops
from sapa_mm.ops import library


def run(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    torch.autograd.grad(output, leaves, torch.ones_like(output))


def main(device):
    count = 0
    for name, (_, options, _) in CASES.items():
        for layout in ('contiguous', 'channels_last'):
            inputs = inputs_of(name, layout, device=device)
            function = getattr(ops, name)
            named = tuple('softmax' if name == 'point_affiliation' and i else o for i, o in enumerate(options))
            run(lambda *x, f=function, o=named: f(*x, *o), inputs)
            count += 1
    for first in library.BACKENDS[:2]:
        for dtype in (torch.float16, torch.float32):
            for kernel_size in (1, 3, 5, 7, 9):
                maps = random_maps((2, 5, 18, 36), (2, 5, 9, 18), (2, 19, 9, 18), dtype=dtype, device=device)
                with library.prefer(first):
                    run(lambda *x, k=kernel_size: ops.point_affiliation(*x, k), maps)
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
