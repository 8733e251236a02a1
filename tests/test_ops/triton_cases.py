# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter, on the CPU: run by test_triton.py in a process of its own.

Prints one JSON object: case -> largest errors of the output and of the gradients, over the largest value.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

#: name: N, D, C, cells, ratio, kernel_size, normalization, whether channels_last
AFFILIATION = {
    'odd': (2, 5, 7, (5, 9), (2, 2), 5, 'softmax', False),
    'channels_last': (1, 5, 7, (5, 3), (2, 2), 5, 'softmax', True),
    'k3': (1, 3, 70, (5, 6), (2, 2), 3, 'softmax', False),
    'k7': (1, 40, 5, (5, 6), (3, 2), 7, 'softmax', False),
    'k1': (1, 3, 5, (3, 5), (4, 2), 1, 'softmax', False),
    'whole blocks': (1, 16, 64, (3, 5), (2, 2), 5, 'softmax', False),
    'two parts': (1, 3, 260, (3, 2), (2, 2), 3, 'softmax', True),
    'equal': (1, 3, 5, (5, 6), (1, 1), 5, 'softmax', False),
    'x4': (1, 3, 5, (3, 4), (4, 4), 5, 'softmax', False),
    'x8 and x5': (1, 3, 5, (3, 2), (8, 5), 3, 'softmax', False),
    'relu': (1, 5, 7, (5, 6), (2, 2), 5, 'relu', False),
    'relu k7': (1, 5, 7, (5, 6), (2, 2), 7, 'relu', False),
    'sigmoid': (1, 5, 7, (5, 6), (2, 2), 3, 'sigmoid', True),
    'softplus': (1, 5, 7, (5, 6), (2, 2), 5, 'softplus', False),
}
#: name: shape, rows of the matrix, mean of the map, whether channels_last
NORM = {
    'norm': ((2, 7, 5, 9), 33, 2, False),
    'norm channels_last': ((2, 70, 5, 9), 3, 2, True),
    'norm of a large mean': ((1, 100, 3, 5), 70, 200, False),
}
#: What is not finite, and where it stands.
NON_FINITE = [*(('nan', where) for where in ('query', 'key', 'value', 'grad')), ('inf', 'value')]


def errors(function, expected_function, inputs, scale=1):
    import torch
    from helpers import forward_and_gradients, random_maps

    exact = [x.double() for x in inputs]
    (cotangent,) = random_maps(expected_function(*exact).shape, dtype=torch.half, seed=1)
    cotangent *= scale
    expected = forward_and_gradients(expected_function, exact, cotangent.double())
    actual = forward_and_gradients(function, inputs, cotangent)
    pairs = [(actual[0], expected[0]), *zip(actual[1], expected[1])]
    return [((a.double() - e).abs().max() / e.abs().max().clamp(min=0.1)).item() for a, e in pairs]


def affiliation_inputs(n, d, c, cells, ratio, channels_last):
    import torch
    from helpers import random_maps

    size = [s * r for s, r in zip(cells, ratio)]
    maps = random_maps((n, d, *size), (n, d, *cells), (n, c, *cells), dtype=torch.half)
    return [x.contiguous(memory_format=torch.channels_last) for x in maps] if channels_last else maps


def finite_places(function, bad, where):
    """Which results stay finite: of the output, and of the gradients of query, key and value, by position."""
    import torch
    from helpers import random_maps

    # several tiles of positions and of cells, and a window that does not fill them
    query, key, value = affiliation_inputs(1, 4, 5, (2, 9), (2, 2), False)
    (grad,) = random_maps((1, 5, 4, 18), dtype=torch.half, seed=1)
    maps = dict(query=query, key=key, value=value, grad=grad)
    maps[where][0, 1, 1, 4] = float(bad)
    leaves = [x.to(torch.double if function.__module__.endswith('reference') else x.dtype) for x in maps.values()]
    grad = leaves.pop()
    leaves = [x.requires_grad_() for x in leaves]
    output = function(*leaves, 3)
    results = (output, *torch.autograd.grad(output, leaves, grad))
    return [x.isfinite().all(1)[0].int().tolist() for x in results]


def main():
    import torch
    from helpers import random_maps

    from sapa_mm import ops
    from sapa_mm.ops import library, reference

    found = {}
    for name, (n, d, c, cells, ratio, kernel_size, normalization, channels_last) in AFFILIATION.items():
        inputs = affiliation_inputs(n, d, c, cells, ratio, channels_last)
        assert ops.backend(inputs[0], inputs[1], kernel_size) == 'triton'
        options = (kernel_size, normalization)
        found[name] = errors(
            lambda *x, o=options: ops.point_affiliation(*x, *o),
            lambda *x, o=options: reference.point_affiliation(*x, *o),
            inputs,
        )
    for name, (shape, rows, mean, channels_last) in NORM.items():
        x, matrix, shift = random_maps(shape, (rows, shape[1]), (rows,), dtype=torch.float32)
        x = (3 * x + mean).half()
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        assert ops.backend(x, operator='norm_projection') == 'triton'
        assert ops.norm_projection(x, matrix, shift).stride() == reference.norm_projection(x, matrix, shift).stride()
        found[name] = errors(ops.norm_projection, reference.norm_projection, [x, matrix, shift])
    found['finite'] = {
        f'{bad} in {where}': [
            finite_places(function, bad, where) for function in (ops.point_affiliation, reference.point_affiliation)
        ]
        for bad, where in NON_FINITE
    }
    query, key, value = affiliation_inputs(1, 4, 5, (4, 4), (2, 2), False)
    found['one gradient'] = [
        [x.grad is not None and bool(x.grad.any()) for x in single_gradient(i, query, key, value)] for i in range(3)
    ]
    large = [60 * query, 60 * key, value]
    found['large scores'] = errors(ops.point_affiliation, reference.point_affiliation, large)[:1]
    # gradients of scores beyond the range of half
    found['large gradients'] = errors(
        lambda *x: ops.point_affiliation(*x, 3),
        lambda *x: reference.point_affiliation(*x, 3),
        [query / 64, key / 64, 200 * value],
        scale=2000,
    )
    with library.prefer('cuda'):
        found['backends'] = [ops.backend(query), ops.backend(query.float())]
    found['backends'] += [ops.backend(query), ops.backend(query.float()), ops.backend(query, key, 9)]
    found['opcheck'] = hasattr(torch.library, 'opcheck')
    if found['opcheck']:
        leaves = [x.requires_grad_() for x in affiliation_inputs(1, 3, 4, (2, 3), (2, 2), True)]
        torch.library.opcheck(torch.ops.sapa_mm.triton_point_affiliation.default, (*leaves, 3, 0, 0))
        parameters = [x.requires_grad_() for x in random_maps((3, 4), (3,), dtype=torch.float32)]
        leaves = leaves[2].detach().requires_grad_(), *parameters
        torch.library.opcheck(torch.ops.sapa_mm.triton_norm_projection.default, (*leaves, 1e-5))
    json.dump(found, sys.stdout)


def single_gradient(which, *inputs):
    from sapa_mm import ops

    leaves = [x.detach().requires_grad_(i == which) for i, x in enumerate(inputs)]
    ops.point_affiliation(*leaves, 3).square().sum().backward()
    return leaves


if __name__ == '__main__':
    main()
