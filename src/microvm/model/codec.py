"""Dataclasses of the model to plain data and back, for `runner.json`, locks and hashes.

Small and without pydantic, because it is on the path from `bin/microvm-run` to the VMM's exec.
It trusts what it reads to have been written by `to_plain`; declarations go through `projects`.
"""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: Any, *, defaults: bool = False) -> Any:
    """Return `value` as dicts, lists and scalars; fields at their default are left out unless
    `defaults`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name), defaults=defaults)
            for f in fields(value)
            if defaults or not _is_default(f, getattr(value, f.name))
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: to_plain(item, defaults=defaults) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, defaults=defaults) for item in value]
    return value


def from_plain(cls: type[T], data: Any) -> T:
    """Return an object of the dataclass `cls` from what `to_plain` returned.

    Raises `ValueError` for a key that `cls` does not have, `KeyError` for one it misses.
    """
    return typing.cast("T", _decode(cls, data))


def _is_default(f: Any, value: Any) -> bool:
    if f.default is not MISSING:
        return bool(value == f.default)
    if f.default_factory is not MISSING:
        return bool(value == f.default_factory())
    return False


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(kind: Any, data: Any) -> Any:
    if data is None:
        return None
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        if unknown := data.keys() - hints.keys():
            raise ValueError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        return kind(**{key: _decode(hints[key], value) for key, value in data.items()})
    origin = typing.get_origin(kind)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, value) for value in data)
    if origin is dict:
        item = typing.get_args(kind)[1]
        return {key: _decode(item, value) for key, value in data.items()}
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), data)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    return data


def _decode_union(arms: tuple[Any, ...], data: Any) -> Any:
    """Pick the arm by the shape of the data; dataclass arms by their `type` tag."""
    for arm in arms:
        plain = typing.get_origin(arm) or arm
        if plain is tuple and isinstance(data, list):
            return _decode(arm, data)
        if is_dataclass(plain) and isinstance(data, dict):
            default = _type_tag(arm)
            if default is None or data.get("type", default) == default:
                return _decode(arm, data)
    return data


def _type_tag(cls: Any) -> str | None:
    for f in fields(cls):
        if f.name == "type" and isinstance(f.default, str):
            return f.default
    return None
