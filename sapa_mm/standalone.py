# SPDX-License-Identifier: Apache-2.0
"""What the upsamplers take from mmengine, for where it is not installed: torch is enough to build and train them."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from torch import nn

#: mmengine's registries, the parents of this package's, are not there.
DATASETS = HOOKS = METRICS = MODELS = OPTIM_WRAPPERS = TRANSFORMS = None


class BaseModule(nn.Module):
    """``nn.Module`` with the ``init_weights`` of mmengine's BaseModule, which calls that of every child.

    Args:
        init_cfg (None): mmengine's rules of initialisation. Only None.

    Raises:
        ImportError: If ``init_cfg`` is given: the rules are mmengine's.
    """

    def __init__(self, init_cfg: None = None) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ImportError(f'init_cfg needs mmengine, which is not installed, got {init_cfg!r}')

    def init_weights(self) -> None:
        """Initialise the children again."""
        for child in self.children():
            if hasattr(child, 'init_weights'):
                child.init_weights()


class Registry:
    """Classes by name, with the part of mmengine's Registry that this package uses.

    Args:
        name (str): What is registered, for messages.
        parent (None): There is none.
        scope (str): Scope that a name may begin with, as in ``'sapa_mm.SAPA'``.
        locations (Sequence[str]): Modules that register classes, imported when a name is not known.
    """

    def __init__(self, name: str, parent: None, scope: str, locations: Sequence[str]) -> None:
        self.name = name
        self.scope = scope
        self.locations = locations
        self.module_dict: dict[str, type] = {}

    def register_module(self, name: str | None = None, force: bool = False, module: type | None = None) -> Callable:
        """Register ``module`` under ``name``, or its own, and return it; without ``module``, a decorator that does.

        Raises:
            KeyError: If the name is taken and ``force`` is not set.
        """
        if module is None:
            return lambda module: self.register_module(name, force, module)
        name = module.__name__ if name is None else name
        if name in self.module_dict and not force:
            raise KeyError(f'{name} is already registered in {self.name} as {self.module_dict[name]}')
        self.module_dict[name] = module
        return module

    def get(self, key: str) -> type | None:
        """The class of that name, with or without the scope; None where there is none."""
        name = key.removeprefix(f'{self.scope}.')
        if name not in self.module_dict:
            for location in self.locations:
                try:
                    import_module(location)
                except ImportError:  # it needs mmengine
                    continue
        return self.module_dict.get(name)

    def build(self, cfg: Mapping) -> object:
        """Build ``cfg['type']``, a class or its name, with the other items as arguments.

        Raises:
            KeyError: If there is no class of that name.
        """
        kind = self.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
        if kind is None:
            raise KeyError(f'{cfg["type"]} is not registered in {self.name} of {self.scope}; mmengine is not installed')
        return kind(**{key: value for key, value in cfg.items() if key != 'type'})
