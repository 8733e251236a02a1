# SPDX-License-Identifier: Apache-2.0
"""Outputs and gradients of the published implementations: `data/golden` and the folders that SAPA_MM_GOLDEN names.

`data/golden/README.md` describes the format. A case gives an operator, its published arguments, inputs, parameters and
a cotangent; `golden_adapters.py` builds the same thing here. Parameters come in by ``load_state_dict``, so every case
tests the key maps too. SAPA_MM_GOLDEN holds any number of further folders, separated like those of PATH; operators that
have no adapter are skipped by name there, and are an error in `data/golden`.
"""

import json
import math
import os
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_adapters import ADAPTERS, TOO_LARGE
from torch.nn import functional as F

from sapa_mm.ops import affiliation_kernels

HERE = Path(__file__).parent / 'data' / 'golden'
FOLDERS = [HERE, *(Path(name) for name in os.environ.get('SAPA_MM_GOLDEN', '').split(os.pathsep) if name)]
# Of the largest value: of the array in float64; in float32 of the outputs, or of the gradients of the case. There some
# gradients are the small rest of terms that cancel (the bias of the keys acts at the border only), for which the
# published code itself is off by up to 3.3e-5 of the array's largest value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Errors of gradients are of the array's largest value, but of this share of the largest of the case where that is more.
ROUNDING = {torch.float64: 1e-4, torch.float32: 1.0}


def read_cases(folder):
    """The index of ``folder``; each case knows where its arrays lie. A folder without an index is an error."""
    cases = json.loads((folder / 'index.json').read_text())['cases']
    return [dict(case, path=folder / case['file']) for case in cases]


CASES = {folder: read_cases(folder) for folder in FOLDERS}


def name_of(case):
    folder = case['path'].parent
    return case['name'] if folder == HERE else f'{folder.name}/{case["name"]}'


def known_and_unknown():
    """The cases with an adapter; operators of other folders without one are one visible skip each."""
    parameters, unknown = [], Counter()
    for folder in FOLDERS:
        for case in CASES[folder]:
            if case['operator'] in ADAPTERS:
                parameters.append(pytest.param(case, id=name_of(case)))
            elif folder != HERE:  # test_every_operator_here_has_an_adapter fails for those
                unknown[case['operator']] += 1
    for operator, count in unknown.items():
        reason = f'golden_adapters.py has no adapter for {operator!r} ({count} cases)'
        parameters.append(pytest.param(None, id=operator, marks=pytest.mark.skip(reason=reason)))
    return parameters


def load(case):
    with np.load(case['path']) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def with_prefix(arrays, prefix, dtype=None):
    return {
        name[len(prefix) :]: x.to(dtype) if x.is_floating_point() else x
        for name, x in arrays.items()
        if name.startswith(prefix)
    }


def state_by_rule(rule, shapes):
    """Parameters and buffers of a case that stores none: each key gives its own array."""
    state = {}
    for key, shape in shapes.items():
        seed = zlib.crc32(f'{rule["seed"]}/{key}'.encode())
        r = np.random.RandomState(seed).randint(-1024, 1025, shape) / 1024
        if key.endswith('num_batches_tracked'):
            r = np.zeros(shape, dtype=np.int64)
        elif key.endswith('running_mean'):
            r = r / 4
        elif key.endswith('running_var'):
            r = 0.5 + np.abs(r)
        elif len(shape) >= 2:
            r = r * (rule['gain'] / math.sqrt(math.prod(shape[1:])))
        elif key.endswith('bias'):
            r = r / 4
        else:
            r = 1 + r / 4
        state[key] = torch.from_numpy(np.asarray(r))
    return state


def published_state(case, arrays, module, shapes=None):
    """The case's parameters and buffers in float64, by published key, parameters first."""
    if 'parameter_rule' not in case:
        return {**with_prefix(arrays, 'param:', torch.float64), **with_prefix(arrays, 'buffer:', torch.float64)}
    shapes = shapes or {key: tuple(x.shape) for key, x in module.state_dict().items()}
    return state_by_rule(case['parameter_rule'], {key: shapes[key] for key in case['state_keys'] + case['buffer_keys']})


def moved_by_key_map(module, published):
    """A dict by published key, moved to this package's names and shapes as ``load_state_dict`` does it."""
    moved = dict(published)
    for prefix, child in module.named_modules():
        if hasattr(child, '_from_published_layout'):
            child._from_published_layout(moved, f'{prefix}.' if prefix else '')
    return moved


def largest(arrays):
    return max((float(x.detach().abs().max()) for x in arrays), default=0.0)


def assert_close(actual, expected, dtype, what, scale=None):
    assert actual is not None, f'{what}: no value'
    actual = actual if torch.is_tensor(actual) else torch.tensor(actual, dtype=torch.float64)
    assert actual.shape == expected.shape, what
    # A gradient that is 0 but for rounding, as of a bias that cancels in a difference, has no bits of its own.
    scale = largest([expected]) if scale is None else max(largest([expected]), ROUNDING[dtype] * scale)
    error = largest([actual.double() - expected.double()]) / max(scale, 1e-30)
    tolerance = TOLERANCE[dtype] + (2**-24 if expected.dtype == torch.float32 else 0)  # large cases are rounded to it
    assert error <= tolerance, f'{what}: off by {error:.2e} of the largest value'


def assert_statistics(pairs, expected, dtype, what, scale):
    """Sum, norm and product with its tensor of a gradient that is not stored; ``pairs``: its parts and the tensor's."""
    grad, tensor = (torch.cat([x.detach().double().flatten() for x in parts]) for parts in zip(*pairs))
    total, norm, product = expected.tolist()
    # What an error of `length` can do to each of the three; the square root is the length of a vector of ones.
    ones = math.sqrt(grad.numel())
    length = max(norm, ROUNDING[dtype] * ones * scale)
    for name, actual, wanted, factor in (
        ('sum', grad.sum(), total, ones),
        ('norm', grad.norm(), norm, 1.0),
        ('product with the tensor', (grad * tensor).sum(), product, float(tensor.norm())),
    ):
        error = abs(float(actual) - wanted) / max(length * factor, 1e-30)
        assert error <= TOLERANCE[dtype], f'{what}: the {name} is off by {error:.2e} of what it can be'


def check_parameter_gradients(case, module, state, arrays, dtype, scale):
    """All of them, if the case has any: whole ones moved by the key map, of the others their three numbers."""
    whole, statistics = with_prefix(arrays, 'grad_param:'), with_prefix(arrays, 'gradstat_param:')
    if not whole and not statistics:
        return
    parameters = dict(module.named_parameters())
    keys = case['state_keys']
    # The key map moves the number of each published tensor along with its elements, so it tells where they went.
    owners = moved_by_key_map(module, {key: torch.full(state[key].shape, i) for i, key in enumerate(keys)})
    assert owners.keys() == parameters.keys()
    ours = {name: (torch.zeros_like(p) if p.grad is None else p.grad, p) for name, p in parameters.items()}
    unused = {name.removeprefix('grad_param:') for name in case['unused_grads']}
    assert {keys[i] for name in ours if parameters[name].grad is None for i in owners[name].unique()} <= unused
    moved = moved_by_key_map(module, {key: whole.get(key, torch.zeros(state[key].shape)) for key in keys})
    for i, key in enumerate(keys):
        parts = {name: owner == i for name, owner in owners.items() if (owner == i).any()}
        if key in whole:
            for name, part in parts.items():
                assert_close(ours[name][0][part], moved[name][part], dtype, f'grad_param:{key}', scale)
        elif key in statistics:
            pairs = [(grad[part], p[part]) for name, part in parts.items() for grad, p in [ours[name]]]
            assert_statistics(pairs, statistics[key], dtype, f'gradstat_param:{key}', scale)
        else:
            assert key in unused, f'no gradient of {key} in the case'


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
@pytest.mark.parametrize('case', known_and_unknown())
def test_golden(case, dtype):
    arrays = load(case)
    module, call, *shapes = ADAPTERS[case['operator']](case)
    state = {}
    if module is not None:
        state = published_state(case, arrays, module, *shapes)
        module.to(dtype).train(case['training_mode'])
        module.load_state_dict({key: x.to(dtype) if x.is_floating_point() else x for key, x in state.items()})
    inputs = with_prefix(arrays, 'in:', dtype)
    for x in inputs.values():
        x.requires_grad_(x.is_floating_point())

    outputs = call(module, inputs)
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    names = [name for name in arrays if name == 'out' or name.startswith('out:')]
    assert len(outputs) == len(names)
    loss = 0
    for name, out in zip(names, outputs):
        assert_close(out.detach() if torch.is_tensor(out) else out, arrays[name], dtype, name)
        if name.replace('out', 'proj', 1) in arrays:
            loss = loss + (out * arrays[name.replace('out', 'proj', 1)].to(dtype)).sum()
    if torch.is_tensor(loss):
        loss.backward()
    for name, expected in with_prefix(arrays, 'buffer_after:').items():
        assert_close(module.get_buffer(name), expected, dtype, f'buffer_after:{name}')

    scale = largest(x for name, x in arrays.items() if name.startswith(('grad:', 'grad_param:')))
    if dtype == torch.float32:  # twice what the published code itself is off by, where that is more
        published_error = (case.get('float32_error_of_official_code') or {}).get('grad_max_rel_to_max') or 0
        scale *= max(1, 2 * published_error / TOLERANCE[dtype])
    for name, expected in with_prefix(arrays, 'grad:').items():
        assert_close(inputs[name].grad, expected, dtype, f'grad:{name}', scale)
    for name, expected in with_prefix(arrays, 'gradstat:').items():
        assert_statistics([(inputs[name].grad, inputs[name])], expected, dtype, f'gradstat:{name}', scale)
    if module is not None:
        check_parameter_gradients(case, module, state, arrays, dtype, scale)


def test_every_operator_here_has_an_adapter():
    assert {case['operator'] for case in CASES[HERE]} - ADAPTERS.keys() == set()


def test_every_adapter_has_a_case_here():
    assert ADAPTERS.keys() - {case['operator'] for case in CASES[HERE]} == TOO_LARGE


def test_folder_is_small_and_whole():
    """At most 2 MB, and each file belongs to a case."""
    files = {path.name: path.stat().st_size for path in HERE.iterdir()}
    assert files.keys() == {case['file'] for case in CASES[HERE]} | {'index.json', 'README.md'}
    assert sum(files.values()) <= 2e6


def test_kernels_are_those_that_mix():
    """`affiliation_kernels`, the function to look at, is the one inside: kernels assembled by hand give the output."""
    case = next(case for case in CASES[HERE] if case['operator'] == 'SAPA-B')
    arrays = load(case)
    module, _ = ADAPTERS['SAPA-B'](case)
    module.load_state_dict(with_prefix(arrays, 'param:', torch.float64))
    module.double()
    feature, guide = (arrays[name].double() for name in ('in:x', 'in:y'))
    kernels = module.kernels(feature, guide)
    query, key, _ = module.embed(feature, guide)
    assert torch.equal(kernels, affiliation_kernels(query, key, module.kernel_size))
    windows = F.unfold(feature, module.kernel_size, padding=module.kernel_size // 2)
    windows = windows.unflatten(1, (feature.shape[1], -1)).unflatten(3, feature.shape[2:])
    ratio = guide.shape[2] // feature.shape[2]
    windows = windows.repeat_interleave(ratio, 3).repeat_interleave(ratio, 4)
    assert_close((windows * kernels[:, None]).sum(2), arrays['out'], torch.float64, 'out')


def auxiliary_cases(operator, prefix):
    """Cases that hold values beside those of the operator as it is called by default."""
    cases = [case for folder in FOLDERS for case in CASES[folder] if case['operator'] == operator]
    return [case for case in cases if any(name.startswith(f'aux:{prefix}') for name in case['shapes'])]


def test_matting_with_the_scale_of_inplace_abn():
    """`inplace_abn_scale` scales by |weight| + eps, as the kernels do that the published network trained with."""
    cases = auxiliary_cases('matting network', 'out_with_inplace_abn_scale')
    assert cases
    for case in cases:
        arrays = load(case)
        net, call = ADAPTERS[case['operator']](case)
        net.double().eval().load_state_dict(published_state(case, arrays, net))
        for module in net.modules():
            if hasattr(module, 'inplace_abn_scale'):
                module.inplace_abn_scale = True
        with torch.no_grad():
            out = call(net, with_prefix(arrays, 'in:', torch.float64))
        assert_close(out, arrays['aux:out_with_inplace_abn_scale'], torch.float64, case['name'])


# A2U's script computes in float32; the largest difference measured is 6e-8.
@pytest.mark.parametrize(('definition', 'prefix', 'tolerance'), [('matlab', 'matlab', 1e-10), ('a2u', 'a2u_py', 1e-6)])
def test_matting_metrics_by_other_definitions(definition, prefix, tolerance):
    from sapa_mm.matting import matting_errors

    cases = auxiliary_cases('matting metrics', prefix)
    assert cases
    for case in cases:
        arrays = load(case)
        found = matting_errors(*(arrays[f'in:{name}'].numpy() for name in ('pred', 'alpha', 'trimap')), definition)
        for name, value in found.items():
            assert value == pytest.approx(float(arrays[f'aux:{prefix}_{name}']), rel=tolerance), (case['name'], name)
