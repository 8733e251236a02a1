# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: sizes beyond 32 bits, streams, graphs, memory, a compiled training step.

Each test runs with every backend that serves it there.
"""

import pytest
import torch
from helpers import TOLERANCE, assert_close, random_maps
from torch.nn import functional as F

from sapa_mm.ops import backend, library, norm_projection, point_affiliation, reference
from sapa_mm.ops.autocast import CAN_COMPILE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')


@pytest.fixture(params=['triton', 'cuda'])
def served_by(request):
    """Prefer a backend; skip where another would serve half maps in its place."""
    with library.prefer(request.param):
        served = backend(torch.ones(1, 1, 1, 1, dtype=torch.half, device='cuda'))
        if served != request.param:
            pytest.skip(f'{served} serves here')
        yield request.param


def make_inputs(n=2, d=8, c=24, cells=(16, 24), size=(32, 48), dtype=torch.half):
    return random_maps((n, d, *size), (n, d, *cells), (n, c, *cells), dtype=dtype, device='cuda')


def needs_memory(nbytes):
    free, _ = torch.cuda.mem_get_info()
    if free < nbytes:
        pytest.skip(f'needs {nbytes / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free')


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_more_than_2_31_elements(served_by, memory_format):
    """The last image of a batch whose output has more than 2^31 elements, forward and backward."""
    needs_memory(24 * 2**30)
    n, d, c, cells, size = 1025, 8, 128, (64, 64), (128, 128)
    query, key, value = (
        torch.zeros(n, *shape, dtype=torch.half, device='cuda').to(memory_format=memory_format)
        for shape in ((d, *size), (d, *cells), (c, *cells))
    )
    last = random_maps((1, d, *size), (1, d, *cells), (1, c, *cells), dtype=torch.half, device='cuda')
    for x, y in zip((query, key, value), last):
        x[-1:] = y
    leaves = [x.requires_grad_() for x in (query, key, value)]
    output = point_affiliation(*leaves)
    assert output.numel() > 2**31
    exact = [x.float().requires_grad_() for x in last]
    expected = reference.point_affiliation(*exact)
    assert_close(output.detach()[-1:], expected.detach(), torch.half)
    grads = torch.autograd.grad(output, leaves, torch.ones_like(output))
    for a, e in zip(grads, torch.autograd.grad(expected, exact, torch.ones_like(expected))):
        assert_close(a[-1:], e, torch.half)


def test_side_stream(served_by):
    """Work is queued on the stream that is current, behind what was queued there before."""
    inputs = make_inputs()
    expected = point_affiliation(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late = [x.clone() for x in inputs]
        output = point_affiliation(*late)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(output, expected)


def test_graph_capture_and_replay(served_by):
    inputs = [x.requires_grad_() for x in make_inputs()]

    def step():
        output = point_affiliation(*inputs)
        return (output, *torch.autograd.grad(output, inputs, torch.ones_like(output)))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is loaded or compiled at the first call cannot be captured
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x, y in zip(inputs, random_maps(*(x.shape for x in inputs), dtype=torch.half, device='cuda', seed=7)):
            x.copy_(y)
    graph.replay()
    replayed = [x.clone() for x in captured]
    for a, b in zip(replayed, step()):
        assert torch.equal(a, b)


def test_expanded_gradient(served_by):
    """As ``output.sum().backward()`` sends it: strides of 0."""
    inputs = [x.requires_grad_() for x in make_inputs()]
    output = point_affiliation(*inputs)
    grads = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    for a, b in zip(grads, torch.autograd.grad(output, inputs, torch.ones_like(output))):
        assert torch.equal(a, b)


def test_bits_repeat(served_by):
    inputs = [x.requires_grad_() for x in make_inputs(c=130)]
    results = []
    for _ in range(5):
        output = point_affiliation(*inputs)
        results.append((output, *torch.autograd.grad(output, inputs, torch.ones_like(output))))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again))


def test_memory_of_a_large_window(record_property):
    """K = 9 has no kernel of its own; what it takes of the device beside its results stays below 256 MiB."""
    if backend(torch.ones(1, 1, 2, 2, device='cuda')) == 'reference':
        pytest.skip('the compiled operators were not built for CUDA')
    inputs = [x.requires_grad_() for x in make_inputs(1, 32, 64, (64, 64), (128, 128), torch.float32)]
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    output = point_affiliation(*inputs, 9)
    torch.autograd.grad(output, inputs, torch.ones_like(output))
    torch.cuda.synchronize()
    taken = free - torch.cuda.mem_get_info()[0] - (torch.cuda.memory_reserved() - reserved)
    record_property('bytes beside the allocator', taken)
    assert taken < 256 * 2**20


class Gated(torch.nn.Module):
    """SAPA-G of the operators alone: the module of the package needs mmengine."""

    def __init__(self, channels=16, embed_dims=8):
        super().__init__()
        for name, rows in dict(key=embed_dims, guide=embed_dims, feature=embed_dims, gate=1).items():
            matrix = torch.randn(rows, channels, generator=torch.Generator().manual_seed(rows))
            setattr(self, name, torch.nn.Parameter(matrix / channels**0.5))
            setattr(self, f'{name}_shift', torch.nn.Parameter(torch.zeros(rows)))

    def forward(self, feature, guide):
        key = norm_projection(feature, self.key, self.key_shift)
        gate = norm_projection(feature, self.gate, self.gate_shift).sigmoid()
        low = torch.einsum('dc,nchw->ndhw', self.feature.to(feature.dtype), feature)
        gate, low = (F.interpolate(x, size=guide.shape[2:]) for x in (gate, low))
        query = gate * norm_projection(guide, self.guide, self.guide_shift) + (1 - gate) * low
        return point_affiliation(query, key, feature)


@pytest.mark.skipif(not CAN_COMPILE, reason='before torch 2.6 the operators stay out of compiled graphs')
def test_compiled_training(served_by):
    """Three steps of SAPA-G under autocast lose as much as they do eagerly."""
    feature, guide = (x.float() for x in random_maps((2, 16, 16, 16), (2, 16, 32, 32), device='cuda'))
    losses = []
    for compiled in (False, True):
        module = Gated().cuda()
        run = torch.compile(module, fullgraph=True) if compiled else module
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        losses.append([])
        for _ in range(3):
            with torch.autocast('cuda', dtype=torch.bfloat16):
                output = run(feature, guide)
            loss = (output.float() - guide).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][0] != losses[0][-1]
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE[torch.bfloat16])
