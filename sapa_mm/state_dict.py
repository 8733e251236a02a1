# SPDX-License-Identifier: Apache-2.0
"""Small moves on state dicts, for modules that load published layouts."""


def rename_prefix(state_dict: dict, old: str, new: str) -> None:
    """Rename, in place, the keys that begin with ``old``."""
    for key in [key for key in state_dict if key.startswith(old)]:
        state_dict[new + key[len(old) :]] = state_dict.pop(key)
