# SPDX-License-Identifier: Apache-2.0
"""The upsamplers train the same compiled: one graph, both memory formats, with and without the native norms."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from sapa_mm.ops import library
from sapa_mm.ops.autocast import CAN_COMPILE
from sapa_mm.upsamplers import SAPA, SAPADeform

whole_graph = pytest.mark.skipif(not CAN_COMPILE, reason='before torch 2.6 the operators stay out of compiled graphs')

CHANNELS = 8


class All(torch.nn.Module):
    """Those that read slices of a projection, norms and sampled points; compiled together, for compiling takes long."""

    def __init__(self):
        super().__init__()
        self.upsamplers = torch.nn.ModuleDict(
            dict(
                {kind: SAPA(CHANNELS, similarity=kind, embed_dims=4) for kind in ('gated', 'bilinear', 'inner')},
                deform=SAPADeform(CHANNELS, num_points=3, groups=2, embed_dims=4),
                deform_norm=SAPADeform(CHANNELS, num_points=3, groups=2, embed_dims=4, norm='layer'),
            )
        )
        torch.manual_seed(0)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.5)

    def forward(self, feature, guide):
        return tuple(upsampler(feature, guide) for upsampler in self.upsamplers.values())


def train(function, module, inputs):
    module.zero_grad()
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    sum((x * x.detach().cos()).sum() for x in outputs).backward()
    return [*outputs, *(x.grad for x in leaves), *(p.grad for p in module.parameters())]


class Checked(torch.fx.Interpreter):
    """Runs a graph and holds the results of our operators against what their fake kernels said.

    Torch's own get the strides that were foretold, as inductor sees to it: its convolutions do not keep to them.
    """

    def run_node(self, node):
        result, fake = super().run_node(node), node.meta.get('val')
        if 'sapa_mm' in str(node.target):
            for real, expected in zip(*(x if isinstance(x, (tuple, list)) else [x] for x in (result, fake))):
                found, wanted = ((x.shape, x.dtype, x.stride()) for x in (real, expected))
                assert found == wanted, f'{node.format_node()}: {found}, the fake kernel says {wanted}'
        elif isinstance(result, torch.Tensor) and result.stride() != fake.stride():
            result = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype).copy_(result)
        return result


def check_layouts(graph, inputs):
    """What inductor asserts in its code, without the minutes in its compiler."""
    return make_boxed_func(Checked(graph).run)


@pytest.fixture(params=['native', 'fallback'])
def norms(request, monkeypatch):
    """With the native norms, and without them as on a GPU."""
    if request.param == 'native' and not library.is_loaded():
        pytest.skip('the compiled operators are not there')
    if request.param == 'fallback':
        for name in ('channel_norm', 'norm_projection'):
            monkeypatch.setitem(library.native_devices, name, ())
    return request.param


FORMATS = dict(nchw=torch.contiguous_format, channels_last=torch.channels_last)


def compare(module, memory_format, backend, fullgraph=True):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(2, CHANNELS, *size, generator=generator).contiguous(memory_format=FORMATS[memory_format])
        for size in ((3, 5), (6, 10))
    ]
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=fullgraph, backend=backend)
    for actual, expected in zip(*(train(function, module, inputs) for function in (compiled, module))):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@whole_graph
@pytest.mark.parametrize('memory_format', FORMATS)
def test_graph_is_eager_training(memory_format, norms):
    compare(All(), memory_format, aot_autograd(fw_compiler=check_layouts))


@pytest.mark.parametrize('memory_format', FORMATS)
def test_inductor_is_eager_training(memory_format, norms):
    """The default upsampler, through the compiler that users have."""
    if not CAN_COMPILE and torch.get_num_threads() == 1:
        pytest.skip('the inductor of torch 2.1 goes wrong with one thread, without an operator of ours in its graph')
    if CAN_COMPILE and not library.is_loaded():
        pytest.skip('the inductor of torch 2.13 aborts in the backward of the plain reference, on a CPU')
    if norms == 'native' and memory_format == 'channels_last':
        pytest.skip('the norms of channels-last maps are the fallback: the same as the next case')
    module = All()
    module.upsamplers = torch.nn.ModuleDict(dict(gated=module.upsamplers['gated']))
    compare(module, memory_format, 'inductor', fullgraph=CAN_COMPILE)
