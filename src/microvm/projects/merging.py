"""A MicroVM's table over the project's defaults."""

from typing import Any

_APPENDED = ("packages", "ssh_authorized_keys", "repositories", "run")
"""Lists of a system that a MicroVM adds to those of `[defaults]`; others take their place."""


def appended(key: str) -> bool:
    """Return whether a list of that name adds to the defaults' one."""
    return key in _APPENDED


def merge(defaults: Any, own: Any) -> Any:
    """Return a MicroVM's table over the defaults: tables key by key; some lists add up."""
    merged = dict(defaults)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        elif appended(key) and isinstance(value, list) and isinstance(merged.get(key), list):
            merged[key] = [*merged[key], *(item for item in value if item not in merged[key])]
        else:
            merged[key] = value
    return merged
