# SPDX-License-Identifier: Apache-2.0
"""The registries of this package: children of mmengine's, reached by the scope ``sapa_mm``."""

from importlib import import_module

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
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
    parent=MMENGINE_DATASETS,
    scope='sapa_mm',
    locations=['sapa_mm.datasets', 'sapa_mm.depth', 'sapa_mm.matting'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='sapa_mm',
    locations=['sapa_mm.evaluation', 'sapa_mm.depth', 'sapa_mm.matting'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='sapa_mm',
    locations=['sapa_mm.datasets', 'sapa_mm.depth', 'sapa_mm.matting'],
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='sapa_mm', locations=['sapa_mm.hooks'])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='sapa_mm', locations=['sapa_mm.optim'])


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
