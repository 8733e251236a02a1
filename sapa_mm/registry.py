# SPDX-License-Identifier: Apache-2.0
"""The registries of this package: children of mmengine's, reached by the scope ``sapa_mm``.

Where mmengine is not installed, they and ``BaseModule`` come from :mod:`sapa_mm.standalone`.
"""

from importlib import import_module

try:
    from mmengine import registry as parents
    from mmengine.model import BaseModule
    from mmengine.registry import Registry
except ImportError as error:
    if (error.name or '').partition('.')[0] != 'mmengine':  # it is there, but broken
        raise
    from . import standalone as parents
    from .standalone import BaseModule, Registry

__all__ = [
    'DATASETS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'TRANSFORMS',
    'BaseModule',
    'Registry',
    'import_or_explain',
]

MODELS = Registry(
    'model',
    parent=parents.MODELS,
    scope='sapa_mm',
    locations=[
        'sapa_mm.upsamplers',
        'sapa_mm.backbones',
        'sapa_mm.necks',
        'sapa_mm.decode_heads',
        'sapa_mm.pixel_decoders',
        'sapa_mm.mask_heads',
        'sapa_mm.depth',
        'sapa_mm.matting',
    ],
)
DATASETS = Registry(
    'dataset',
    parent=parents.DATASETS,
    scope='sapa_mm',
    locations=['sapa_mm.datasets', 'sapa_mm.depth', 'sapa_mm.matting'],
)
METRICS = Registry(
    'metric',
    parent=parents.METRICS,
    scope='sapa_mm',
    locations=['sapa_mm.evaluation', 'sapa_mm.depth', 'sapa_mm.matting'],
)
TRANSFORMS = Registry(
    'transform',
    parent=parents.TRANSFORMS,
    scope='sapa_mm',
    locations=['sapa_mm.datasets', 'sapa_mm.depth', 'sapa_mm.matting'],
)
HOOKS = Registry('hook', parent=parents.HOOKS, scope='sapa_mm', locations=['sapa_mm.hooks'])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=parents.OPTIM_WRAPPERS, scope='sapa_mm', locations=['sapa_mm.optim'])


def import_or_explain(module: str, name: str, needs: str, registry: Registry, package: str | None = None):
    """Import ``name`` from ``module``; where what it builds on is missing, register a type that says so when built.

    Without the stand-in, a config that uses the type would end in "sapa_mm.X is not in the registry", which hides the
    import error that is the reason.

    Args:
        module: Module to import, relative to ``package`` where it starts with a dot.
        name: Registered class in that module.
        needs: What must be installed, for the message.
        registry: Where the stand-in goes.
        package: Anchor of a relative ``module``.

    Returns:
        The class, or the stand-in whose constructor raises :class:`ImportError`.
    """
    try:
        return getattr(import_module(module, package), name)
    except ImportError as error:
        reason = f'{name} needs {needs}, which cannot be imported ({error}); see `python -m sapa_mm.doctor`'

    def refuse(self, *args, **kwargs):
        raise ImportError(reason)

    return registry.register_module()(type(name, (), dict(__init__=refuse, __doc__=reason)))
