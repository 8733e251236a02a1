# SPDX-License-Identifier: Apache-2.0
"""Loading the state dicts of published implementations, whose names and shapes differ."""


class LoadsPublishedLayout:
    """Mixin of an ``nn.Module``, before it in the bases, whose ``load_state_dict`` also takes published keys.

    A class says in :meth:`_from_published_layout` what its keys are called elsewhere; ``tools/convert_weights.py``
    reads the same map.
    """

    def _from_published_layout(self, state_dict: dict, prefix: str) -> None:
        """Turn the keys of the published implementation into this module's, in place; its own pass unchanged."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        self._from_published_layout(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def rename_prefix(state_dict: dict, old: str, new: str) -> None:
    """Rename, in place, the keys that begin with ``old``."""
    for key in [key for key in state_dict if key.startswith(old)]:
        state_dict[new + key[len(old) :]] = state_dict.pop(key)
