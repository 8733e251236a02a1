# SPDX-License-Identifier: Apache-2.0
"""``torch.func`` on the operators: gradients, Jacobians, and those of every sample, against the reference and loops."""

import warnings
from functools import partial

import pytest
import torch
from cases import LAYOUTS, lay_out
from helpers import needs_native, random_maps
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

from sapa_mm import ops

pytestmark = needs_native

#: Function -> shapes of its tensors, its options.
FUNCTIONS = dict(
    point_affiliation=([(2, 3, 5, 6), (2, 3, 3, 2), (2, 4, 3, 2)], dict(kernel_size=3)),
    affiliation_kernels=([(2, 3, 5, 6), (2, 3, 3, 2)], dict(kernel_size=3)),
    feature_assembly=([(2, 4, 3, 2), (2, 18, 5, 6)], dict(kernel_size=3, groups=2)),
    deformable_scores=([(2, 4, 5, 6), (2, 4, 3, 2), (2, 12, 5, 6)], dict(groups=2)),
    deformable_assembly=([(2, 4, 3, 2), (2, 6, 5, 6), (2, 12, 5, 6)], dict(groups=2)),
    channel_norm=([(2, 4, 3, 2), (4,), (4,)], dict(eps=0.1)),
    norm_projection=([(2, 4, 3, 2), (3, 4), (3,)], dict(eps=0.1)),
)
SAMPLES = 3
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
no_warning = pytest.mark.skipif(
    not hasattr(torch.library, 'register_vmap'), reason='before torch 2.5 torch warns that it runs a loop'
)

from_torch_2_5 = pytest.mark.skipif(
    not hasattr(torch.library, 'register_vmap'),
    reason='before torch 2.5 torch runs one sample after the other, and not all',
)


def functions(name):
    """The public function and the reference, with their options."""
    options = FUNCTIONS[name][1]
    return partial(getattr(ops, name), **options), partial(getattr(ops.reference, name), **options)


def inputs_of(name):
    return random_maps(*FUNCTIONS[name][0])


def samples_of(name):
    return random_maps(*((SAMPLES, *shape) for shape in FUNCTIONS[name][0]), seed=1)


def loss(function, *inputs):
    """A sum whose terms differ, so that no gradient is that of a neighbour."""
    output = function(*inputs)
    return (output * torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view_as(output).cos()).sum()


def every(inputs):
    return tuple(range(len(inputs)))


def test_every_public_function_is_here():
    modules = {'flops', 'reference'}
    assert set(FUNCTIONS) == set(ops.__all__) - modules - {'backend'}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_grad_and_vjp(name):
    (ours, theirs), inputs = functions(name), inputs_of(name)
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(loss(theirs, *leaves), leaves)
    close(grad(partial(loss, ours), every(inputs))(*inputs), expected)
    output, pull = vjp(ours, *inputs)
    close(output, theirs(*inputs))
    (cotangent,) = random_maps(output.shape, seed=2)
    close(pull(cotangent), torch.autograd.grad(theirs(*leaves), leaves, cotangent))


@pytest.mark.parametrize('name', FUNCTIONS)
def test_jacobian(name):
    (ours, theirs), inputs = functions(name), inputs_of(name)
    close(jacrev(ours, every(inputs))(*inputs), jacrev(theirs, every(inputs))(*inputs))


@no_warning
@pytest.mark.parametrize('name', FUNCTIONS)
def test_gradients_of_every_sample(name):
    """All tensors of its own; then each of them shared, as parameters are."""
    (ours, theirs), samples = functions(name), samples_of(name)
    wanted, found = (grad(partial(loss, function), every(samples)) for function in (theirs, ours))
    for shared in (None, *every(samples)):
        in_dims = tuple(None if i == shared else 0 for i in every(samples))
        inputs = [x[0] if i == shared else x for i, x in enumerate(samples)]
        expected = [wanted(*(x if i == shared else x[n] for i, x in enumerate(inputs))) for n in range(SAMPLES)]
        with warnings.catch_warnings():
            if name != 'affiliation_kernels':  # which is plain torch, with a loop of torch's own
                warnings.simplefilter('error')
            close(vmap(found, in_dims)(*inputs), tuple(map(torch.stack, zip(*expected))))


@pytest.mark.parametrize('name', FUNCTIONS)
def test_batch_within_gradients(name):
    """The other order: one gradient of a function that is run for every sample, at any place of the samples."""
    (ours, theirs), samples = functions(name), samples_of(name)
    samples = [x.movedim(0, 1) for x in samples]
    wanted, found = (vmap(function, in_dims=1, out_dims=-1) for function in (theirs, ours))
    close(grad(partial(loss, found), every(samples))(*samples), grad(partial(loss, wanted), every(samples))(*samples))


@from_torch_2_5
@pytest.mark.parametrize('name', FUNCTIONS)
def test_gradients_of_single_tensors(name):
    (ours, theirs), samples = functions(name), samples_of(name)
    for i in every(samples):
        wanted, found = (vmap(grad(partial(loss, function), i)) for function in (theirs, ours))
        close(found(*samples), wanted(*samples))


@pytest.mark.parametrize('name', FUNCTIONS)
def test_gradient_around_another(name):
    """The outer of two gradients, where the inner one is that of something else."""
    inputs = inputs_of(name)
    found, wanted = (
        grad(lambda *x, f=f: grad(lambda factor: (factor * f(*x)).sum())(torch.tensor(2.0)), every(inputs))(*inputs)
        for f in functions(name)
    )
    assert all(x.any() for x in found)
    close(found, wanted)


@from_torch_2_5
@pytest.mark.parametrize('name', ['point_affiliation', 'channel_norm'])
def test_samples_of_samples_and_none(name):
    ours, theirs = functions(name)
    for sizes in ((2, 3), (2, 0)):
        samples = random_maps(*((*sizes, *shape) for shape in FUNCTIONS[name][0]))
        if 0 in sizes and name == 'channel_norm':
            samples[1:] = [x[0, :0].new_ones(4) for x in samples[1:]]  # shared, so that all go together
        in_dims = tuple(0 if x.dim() > 1 else None for x in samples)
        found = vmap(vmap(ours, in_dims), in_dims)(*samples)
        assert found.shape == (*sizes, *theirs(*inputs_of(name)).shape)
        if 0 not in sizes:
            close(found, vmap(vmap(theirs))(*samples))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', FUNCTIONS)
def test_layouts(name, layout):
    """What is shared may lie in memory in any way, and so may the samples."""
    (ours, theirs), samples = functions(name), samples_of(name)
    samples = [lay_out(x.flatten(0, 1), layout).unflatten(0, (SAMPLES, -1)) if x.dim() == 5 else x for x in samples]
    first, *rest = samples
    inputs = [lay_out(first[0], layout), *rest]
    in_dims = (None, *[0] * len(rest))
    found, wanted = (vmap(grad(partial(loss, f), every(inputs)), in_dims)(*inputs) for f in (ours, theirs))
    close(found, wanted)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    """Of a batch as of a sample."""
    for name in FUNCTIONS:
        ours, _ = functions(name)
        samples = [x.to(dtype) for x in samples_of(name)]
        if name == 'norm_projection':
            samples[1:] = [x.float() for x in samples[1:]]
        found = vmap(grad(partial(loss, ours), every(samples)))(*samples)
        for n in range(SAMPLES):
            leaves = [x[n].clone().requires_grad_() for x in samples]
            for a, b in zip(found, torch.autograd.grad(loss(ours, *leaves), leaves)):
                assert a.dtype == b.dtype and torch.equal(a[n], b), name


@pytest.mark.parametrize('name', [name for name in FUNCTIONS if name != 'affiliation_kernels'])
def test_what_is_refused(name):
    """Forward mode and second derivatives, by name, from inside ``torch.func`` too."""
    (ours, _), inputs = functions(name), inputs_of(name)
    with pytest.raises(NotImplementedError, match=f'sapa_mm::{name} has no forward-mode derivative'):
        jvp(ours, tuple(inputs), tuple(map(torch.ones_like, inputs)))
    with pytest.raises(NotImplementedError, match=f'sapa_mm::{name} has no forward-mode derivative'):
        jacfwd(ours)(*inputs)
    with pytest.raises(NotImplementedError, match=f'sapa_mm::_{name}_backward has no second derivative'):
        grad(lambda *x: grad(partial(loss, ours))(*x).square().sum())(*inputs)
