# SPDX-License-Identifier: Apache-2.0
"""What torch knows of every compiled operator: fake kernels, layouts and derivatives."""

import itertools

import pytest
import run_cases
import torch
from cases import CASES, LAYOUTS, inputs_of
from helpers import DEVICES, needs_native, random_maps

from sapa_mm.ops import library
from sapa_mm.ops.maps import memory_format

pytestmark = needs_native
NORMS = ('channel_norm', 'norm_projection')
needs_opcheck = pytest.mark.skipif(
    not hasattr(torch.library, 'opcheck'),
    reason=f'torch.library.opcheck came with torch 2.4, this is {torch.__version__}',
)


def skip_if_not_compiled(name, device):
    if device not in library.native_devices[name]:
        pytest.skip(f'{name} was not compiled for {device}')


def operator(name):
    return getattr(torch.ops.sapa_mm, name).default


def run(name, inputs):
    output = operator(name)(*inputs, *CASES[name][1])
    return output[0] if isinstance(output, tuple) else output


def backward_arguments(name, inputs, needs_grad):
    inputs = [x.detach() for x in inputs]
    output = operator(name)(*inputs, *CASES[name][1])
    output, *saved = output if isinstance(output, tuple) else (output,)
    (grad,) = random_maps(output.shape, dtype=output.dtype, device=output.device, seed=1)
    return (grad, *inputs, *saved, *CASES[name][1], needs_grad)


def test_every_operator_is_here():
    assert set(CASES) == set(library.OPERATORS)


@pytest.mark.parametrize('device', DEVICES)
@needs_opcheck
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', CASES)
def test_opcheck(name, layout, device):
    skip_if_not_compiled(name, device)
    torch.library.opcheck(operator(name), (*inputs_of(name, layout, device=device), *CASES[name][1]))


@pytest.mark.parametrize('device', DEVICES)
@needs_opcheck
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', CASES)
def test_opcheck_of_the_backward(name, layout, device):
    skip_if_not_compiled(name, device)
    inputs = inputs_of(name, layout, device=device)
    # no test of its derivative: it has none
    arguments = backward_arguments(name, inputs, [True] * len(inputs))
    torch.library.opcheck(operator(f'_{name}_backward'), arguments, test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize('device', DEVICES)
@needs_opcheck
@pytest.mark.parametrize('name', CASES)
def test_opcheck_of_single_gradients(name, device):
    skip_if_not_compiled(name, device)
    inputs = inputs_of(name, device=device)
    for needed in range(len(inputs)):
        arguments = backward_arguments(name, inputs, [needed == i for i in range(len(inputs))])
        torch.library.opcheck(operator(f'_{name}_backward'), arguments, test_utils='test_faketensor')


@needs_opcheck
def test_opcheck_of_a_norm_without_parameters():
    x, *_ = inputs_of('channel_norm')
    torch.library.opcheck(operator('channel_norm'), (x, None, None, 1e-5))


@needs_opcheck
@pytest.mark.parametrize('name', ['deformable_assembly', *NORMS])
def test_opcheck_of_mixed_dtypes(name):
    """Half maps with the kernels or parameters of a norm in float32."""
    halves = (0, 2) if name == 'deformable_assembly' else (0,)
    inputs = [x.detach().half() if i in halves else x.detach() for i, x in enumerate(inputs_of(name))]
    torch.library.opcheck(operator(name), (*[x.requires_grad_() for x in inputs], *CASES[name][1]))
    for needs_grad in ([True] * 3, [False] * 3):
        torch.library.opcheck(operator(f'_{name}_backward'), backward_arguments(name, inputs, needs_grad))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', CASES)
def test_results_have_the_layout_of_their_maps(name, layout, device):
    skip_if_not_compiled(name, device)
    inputs = inputs_of(name, layout, device=device)
    followed = dict(point_affiliation=2, feature_assembly=0, deformable_assembly=0).get(name)
    output = run(name, inputs)
    wanted = torch.contiguous_format if followed is None else memory_format(inputs[followed])
    assert output.is_contiguous(memory_format=wanted)
    needs_grad = [True] * len(inputs)
    grads = operator(f'_{name}_backward')(*backward_arguments(name, inputs, needs_grad))
    for x, grad in zip(inputs, grads):
        wanted = torch.contiguous_format if name in NORMS else memory_format(x)
        assert grad.is_contiguous(memory_format=wanted)


def test_memory_format_is_that_of_the_library():
    """For all sizes of 0, 1 and 2, in both formats and sliced: the strides that the C++ gave a result."""
    for shape in itertools.product((0, 1, 2), (1, 2), (1, 2), (1, 2)):
        kernels = torch.zeros(shape[0], 1, 2, 2)
        for contents in (torch.contiguous_format, torch.channels_last):
            whole = torch.zeros([2 * s for s in shape]).contiguous(memory_format=contents)
            views = [torch.zeros(shape).contiguous(memory_format=contents), whole[tuple(slice(s) for s in shape)]]
            views += [torch.zeros(shape[:3] + (1,)).expand(shape), torch.zeros(1, *shape[1:]).expand(shape)]
            for x in (*views, *(v.transpose(2, 3) for v in views)):
                result = torch.ops.sapa_mm.feature_assembly(x, kernels, 1, 1, 0)
                expected = torch.empty(result.shape, memory_format=memory_format(x))
                assert result.stride() == expected.stride(), (x.shape, x.stride())


@pytest.mark.parametrize('name', CASES)
def test_second_derivative_is_refused(name):
    inputs = inputs_of(name)
    grads = torch.autograd.grad(run(name, inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match=f'sapa_mm::_{name}_backward has no second derivative'):
        grads[0].sum().backward()


@pytest.mark.parametrize('name', CASES)
def test_forward_mode_is_refused(name):
    """Not zero, nor None."""
    inputs = [x.detach() for x in inputs_of(name)]
    with torch.autograd.forward_ad.dual_level():
        inputs[0] = torch.autograd.forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        with pytest.raises(NotImplementedError, match=f'sapa_mm::{name} has no forward-mode derivative'):
            run(name, inputs)


@pytest.mark.parametrize('name', [name for name, (_, _, saved) in CASES.items() if saved])
def test_saved_outputs_have_no_gradient(name):
    output, *saved = operator(name)(*inputs_of(name), *CASES[name][1])
    assert output.requires_grad and not any(x.requires_grad for x in saved)
    assert len(saved) == CASES[name][2]


def test_cases_of_the_sanitizers_run(capsys):
    """compute-sanitizer runs them on a GPU alone."""
    run_cases.main('cpu')
    assert 'cases on cpu' in capsys.readouterr().out
