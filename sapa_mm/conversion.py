# SPDX-License-Identifier: Apache-2.0
"""Any decoder with guided upsampling: its graph is traced, and its interpolations are replaced. Experimental."""

import copy
import inspect
import operator
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .upsamplers import BaseUpsampler, build_upsampler

RESIZES = (F.interpolate, F.upsample, F.upsample_nearest, F.upsample_bilinear)
POOLS = (F.adaptive_avg_pool2d,)
SUMS = (operator.add, operator.iadd, torch.add, 'add', 'add_')
#: Stacked maps are mostly summed afterwards.
JOINS = (torch.cat, torch.concat, torch.stack)


class Place(NamedTuple):
    """An interpolation that an upsampler can replace."""

    #: Module that interpolates, by its name in the model; empty for the model itself.
    module: str
    #: File and line.
    source: str
    #: Shapes of the example: the map that is upsampled, and the map that it meets.
    feature: tuple[int, ...]
    guide: tuple[int, ...]
    #: ``'fuse'`` (a sum), ``'pair'`` (a concatenation of the two) or ``'forward'``: how the upsampler is called.
    call: str


def convert(
    decoder: nn.Module,
    upsample_cfg: Mapping,
    dry_run: bool = False,
    example_inputs: Sequence[Any] | None = None,
    places: Sequence[int] | None = None,
) -> nn.Module | list[Place]:
    """Replace interpolations of any model by upsamplers. Experimental: look at the places before you train.

    A map that is enlarged and then added to, concatenated or stacked with another map gets that other as its guide. It
    may pass through layers that keep its size in between, such as a convolution. Where it meets several maps, the guide
    is the first that was not enlarged itself. What is enlarged and meets no other map stays as it is, and so do maps
    that were pooled to a fixed number of positions.

    A sum of two maps becomes :meth:`BaseUpsampler.fuse`, a concatenation of two :meth:`BaseUpsampler.pair`, and all
    else :meth:`BaseUpsampler.forward`. The result is a copy with the class, methods and parameter names of the model;
    only its ``forward`` is new, and ``upsamplers``. The model's state dicts load with ``strict=False``.

    The model is traced with example inputs. Branches on sizes and on ``self.training`` in its own functions, not in
    layers of torch, stay as they are taken then. What branches on values cannot be traced: convert the decoder alone,
    or the neck or head. Transposed convolutions are not found. The copy cannot be pickled whole; save its state dict.

    Args:
        decoder (nn.Module): The model or, mostly, its decoder, neck or head.
        upsample_cfg (dict): Config of an upsampler, such as ``dict(type='sapa_mm.SAPA')``, which gets its channels from
            the maps.
        dry_run (bool): Print the places and change nothing. Defaults to False.
        example_inputs (Sequence, optional): Arguments of ``forward``, of any batch and size. Defaults to one random
            image, ``(1, 3, 64, 64)``.
        places (Sequence[int], optional): Convert only these, by their printed numbers. Defaults to all.

    Returns:
        nn.Module or list[Place]: The changed copy; in a dry run what is printed.

    Raises:
        ValueError: If the model cannot be traced (the message names the line), if there is no place or no such place,
            if it has ``upsamplers`` already, or if an upsampler does not fit a place.
        TypeError: If ``upsample_cfg`` is wrong, see :func:`sapa_mm.upsamplers.build_upsampler`.
    """
    if hasattr(decoder, 'upsamplers'):
        raise ValueError(f'{type(decoder).__name__} has upsamplers already')
    graph = trace(copy.deepcopy(decoder), example_inputs)
    sites = list(find_sites(graph))
    found = [site.place for site in sites]
    if dry_run:
        print(describe(decoder, found))
        return found
    if places is not None:
        if not all(0 <= i < len(sites) for i in places):
            raise ValueError(f'places must be numbers below {len(sites)}, got {list(places)}')
        sites = [sites[i] for i in sorted(set(places))]
    if not sites:
        raise ValueError(f'{type(decoder).__name__} enlarges no map that meets another')
    converted = copy.deepcopy(decoder)
    converted.upsamplers = Upsamplers()
    fused = {}
    for i, site in enumerate(sites):
        try:
            upsampler = build_upsampler(upsample_cfg, site.place.feature[1], site.place.guide[1])
        except ValueError as error:
            raise ValueError(f'{error}, at {describe_place(site.place)}') from error
        converted.upsamplers.append(upsampler.to(next(converted.parameters(), torch.empty(()))))
        site.replace(graph, f'upsamplers.{i}', fused)
    for node in graph.nodes:
        node.meta.clear()
    module = fx.GraphModule(converted, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    kind = type(converted)
    members = {name: getattr(module, name) for name in ('_in_spec', '_out_spec') if hasattr(module, name)}
    converted.__class__ = type(kind)(kind.__name__, (kind,), dict(members, forward=type(module).forward))
    converted.upsamplers.train(decoder.training)
    return converted


class Upsamplers(nn.ModuleList):
    """Restores the upsamplers' own initialisation after a model's rules, as mmengine's ModuleList does."""

    def init_weights(self) -> None:
        for upsampler in self:
            upsampler.init_weights()


def trace(model: nn.Module, example_inputs: Sequence[Any] | None) -> fx.Graph:
    """The graph of ``model``, whose state may change, with each node's value for the example in its ``meta``."""
    if example_inputs is None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
        example_inputs = (torch.rand(1, 3, 64, 64).to(like),)
    shapes = pytree.tree_map(shape_of, list(example_inputs))
    try:
        bound = inspect.signature(model.forward).bind(*example_inputs)
    except TypeError as error:
        raise ValueError(f'forward of {type(model).__name__} does not take example_inputs {shapes}: {error}') from error
    bound.apply_defaults()
    for module in model.modules():
        if type(module).__module__.startswith('torch.nn'):  # recorded whole; a norm would refuse one value per channel
            module.training = False
    try:
        tracer = Tracer(model, bound)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # fx says that it fixes arguments that are no tensors
            return tracer.trace(model, tracer.fixed)
    except Exception as error:
        source = own_line(traceback.extract_tb(error.__traceback__))
        raise ValueError(
            f'{type(model).__name__} cannot be traced with example_inputs {shapes}: {type(error).__name__}: {error}'
            f' (at {source}); give other example_inputs or convert its decoder alone'
        ) from error


class Tracer(fx.Tracer):
    """Traces with values beside the symbols, so that sizes can be counted, compared and unpacked."""

    def __init__(self, model: nn.Module, bound: inspect.BoundArguments) -> None:
        # mmseg's own interpolation, where it is in use, is a function of many branches
        resize = getattr(sys.modules.get('mmseg.models.utils.wrappers'), 'resize', None)
        self.resizes = RESIZES if resize is None else (*RESIZES, resize)
        super().__init__(autowrap_functions=self.resizes[len(RESIZES) :])
        tensors = {name for name, value in bound.arguments.items() if isinstance(value, Tensor)}
        variadic = {p.name for p in bound.signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        #: Arguments that are no single tensor: containers keep their structure, all else its value.
        self.fixed = {
            name: pytree.tree_map(lambda x: fx.PH if isinstance(x, Tensor) else x, value)
            for name, value in bound.arguments.items()
            if name not in tensors | variadic
        }
        self.inputs = iter(
            [
                x
                for name, value in bound.arguments.items()
                for x in (pytree.tree_flatten(value)[0] if name in self.fixed else [value])
            ]
        )
        self.model = model
        self.path: list[str] = []
        self.running = False

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, BaseUpsampler) or is_upsample(module) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        self.path.append(self.path_of_module(module))
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self.path.pop()

    def getattr(self, name: str, value: Any, cache: dict) -> Any:
        return value if self.running else super().getattr(name, value, cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest, **options) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        self.running = True  # modules and parameters are those of the model, not recorded again
        try:
            node.meta['value'] = self.run(node)
        finally:
            self.running = False
        module = self.model.get_submodule(target) if kind == 'call_module' else None
        node.meta['resizes'] = target in self.resizes if module is None else is_upsample(module)
        node.meta['pools'] = target in POOLS if module is None else isinstance(module, nn.AdaptiveAvgPool2d)
        if node.meta['resizes']:
            path = self.path[:-1] if kind == 'call_module' else self.path
            node.meta['module'] = path[-1] if path else ''
            node.meta['source'] = own_line(traceback.extract_stack())
        return proxy

    def run(self, node: fx.Node) -> Any:
        """The value of a node whose inputs have theirs."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta['value'])
        if node.op == 'placeholder':
            return next(self.inputs)
        if node.op == 'get_attr':
            return operator.attrgetter(node.target)(self.model)
        if node.op == 'call_module':
            return self.model.get_submodule(node.target)(*args, **kwargs)
        if node.op == 'call_method':
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def to_bool(self, proxy: fx.Proxy) -> bool:
        value = proxy.node.meta['value']
        if isinstance(value, Tensor):
            return super().to_bool(proxy)
        return bool(value)

    def iter(self, proxy: fx.Proxy) -> Iterator:
        value = proxy.node.meta['value']
        if isinstance(value, Tensor):
            return super().iter(proxy)
        return iter([proxy[i] for i in range(len(value))])


class Proxy(fx.Proxy):
    """Has the length of its value."""

    def __len__(self) -> int:
        return len(self.node.meta['value'])

    def __getattr__(self, name: str) -> 'Attribute':
        return Attribute(self, name)


class Attribute(fx.proxy.Attribute):
    """Likewise, such as ``x.shape``."""

    __len__ = Proxy.__len__
    __getattr__ = Proxy.__getattr__


class Site(NamedTuple):
    """Nodes of a place: what interpolates, what joins the maps and what guides."""

    place: Place
    resize: fx.Node
    join: fx.Node
    guide: fx.Node

    def replace(self, graph: fx.Graph, name: str, fused: dict[fx.Node, fx.Node]) -> None:
        """Put the upsampler ``name`` in its place; ``fused`` has the sums that went before."""
        feature, guide = source_of(self.resize), fused.get(self.guide, self.guide)
        needed = ancestors(guide)
        nodes = list(graph.nodes)
        for node in nodes[nodes.index(self.resize) :]:
            if node in needed:  # the guide is made after the interpolation
                self.resize.prepend(node)
        with graph.inserting_before(self.resize):
            if self.place.call == 'forward':
                self.resize.replace_all_uses_with(graph.call_module(name, (feature, guide)))
                return
            result = graph.call_method(self.place.call, (graph.get_attr(name), feature, guide))
            if self.place.call == 'fuse':
                fused[self.join] = result
                self.join.replace_all_uses_with(result)
                return
            upsampled, beside = (graph.call_function(operator.getitem, (result, i)) for i in range(2))
        self.join.replace_input_with(self.resize, upsampled)
        self.join.replace_input_with(guide, beside)


def find_sites(graph: fx.Graph) -> Iterator[Site]:
    """What :func:`convert` replaces, in the order of computation."""
    resizes = [node for node in graph.nodes if node.meta.get('resizes') and enlarges(node) and not is_pooled(node)]
    ends = {resize: end for resize in resizes if (end := follow(resize)) is not None}
    enlarged = {end for end, _ in ends.values()}
    for resize, (end, join) in ends.items():
        others = [x for x in maps(join) if x is not end]
        size = resize.meta['value'].shape[2:]
        for guide in others:
            if guide in enlarged or not is_map(guide) or guide.meta['value'].shape[2:] != size:
                continue
            if resize in ancestors(guide):
                continue
            call = 'forward'
            if end is resize and len(others) == 1 and len(maps(join)) == 2 and not join.kwargs.get('alpha'):
                call = 'fuse' if join.target in SUMS else 'pair' if join.target is not torch.stack else call
            shapes = (tuple(x.meta['value'].shape) for x in (source_of(resize), guide))
            yield Site(Place(resize.meta['module'], resize.meta['source'], *shapes, call), resize, join, guide)
            break


def follow(resize: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Where the enlarged map meets another: its last node before that, and the node that joins them."""
    node = resize
    while True:
        users = [user for user in node.users if is_map(user)]  # not its size
        if len(users) != 1:
            return None
        (user,) = users
        if user.target in SUMS or user.target in JOINS:
            return node, user
        if user.meta['value'].shape[2:] != resize.meta['value'].shape[2:]:
            return None
        node = user


def maps(join: fx.Node) -> list[fx.Node]:
    """The maps that a node joins; some may be the same."""
    operands = join.args or tuple(join.kwargs.values())
    operands = operands[0] if join.target in JOINS else operands[:2]
    return [x for x in operands if isinstance(x, fx.Node) and isinstance(x.meta['value'], Tensor)]


def source_of(resize: fx.Node) -> fx.Node:
    return resize.args[0] if resize.args else resize.kwargs['input']


def enlarges(resize: fx.Node) -> bool:
    if not is_map(resize):
        return False
    before, after = (node.meta['value'].shape[2:] for node in (source_of(resize), resize))
    return before != after and all(have <= want for have, want in zip(before, after))


def is_pooled(resize: fx.Node) -> bool:
    """Whether what is enlarged was pooled to a fixed size, as in pyramid pooling: it has no finer map to follow."""
    node = source_of(resize)
    while not node.meta['pools']:
        if len(node.all_input_nodes) != 1:
            return False
        (node,) = node.all_input_nodes
    return True


def is_map(node: fx.Node) -> bool:
    value = node.meta.get('value')  # the output has none
    return isinstance(value, Tensor) and (value.dim() == 4 or node.target is torch.stack)


def is_upsample(module: nn.Module) -> bool:
    """torch's module, its children and mmseg's copy of it."""
    return isinstance(module, nn.Upsample) or type(module).__module__ == 'mmseg.models.utils.wrappers'


def ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def own_line(frames: traceback.StackSummary) -> str:
    """File and line of the innermost frame that is neither torch's nor this module's."""
    for frame in reversed(frames):
        if frame.filename != __file__ and Path(torch.__file__).parent not in Path(frame.filename).parents:
            if not frame.filename.startswith('<'):
                return f'{Path(frame.filename).name}:{frame.lineno}, `{frame.line}`'
    return ''


def shape_of(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, Tensor) else x


def describe(model: nn.Module, places: list[Place]) -> str:
    lines = [f'{type(model).__name__}: {len(places)} places']
    return '\n'.join(lines + [f'{i:3}  {describe_place(place)}' for i, place in enumerate(places)])


def describe_place(place: Place) -> str:
    return f'{place.module or "."}: {place.feature} guided by {place.guide}, {place.call}; {place.source}'
