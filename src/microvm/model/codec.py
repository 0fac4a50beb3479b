"""Dataclasses of the model to plain data and back, for `runner.json`, locks and hashes.

Small and without pydantic, because it is on the path from `bin/microvm-run` to the VMM's exec.
It checks types and not what they mean: declarations go through `projects`.
"""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar

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

    Raises `ValueError` that names the key of another type, of one that `cls` lacks or misses.
    """
    try:
        return typing.cast("T", _decode(cls, data, ""))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _is_default(f: Any, value: Any) -> bool:
    if f.default is not MISSING:
        return bool(value == f.default)
    if f.default_factory is not MISSING:
        return bool(value == f.default_factory())
    return False


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(kind: Any, data: Any, where: str) -> Any:
    # Exactly: true is an int to isinstance.
    if type(data) is kind or kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), data, where)
    if is_dataclass(kind) and isinstance(data, dict):
        return _decode_object(kind, data, where)
    if origin is tuple and isinstance(data, list):
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, value, f"{where}.{n}") for n, value in enumerate(data))
    if origin is dict and isinstance(data, dict):
        item = typing.get_args(kind)[1]
        return {key: _decode(item, value, f"{where}.{key}") for key, value in data.items()}
    if origin is Literal and data in typing.get_args(kind):
        return data
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    found = _KINDS.get(type(data), "of an unknown type")
    raise ValueError(f"{where.lstrip('.') or 'it'} is {found}, not {_allowed(kind)}")


_KINDS = {
    str: "a text", int: "a number", float: "a fraction", bool: "true or false", dict: "a table",
    list: "a list", tuple: "a list", type(None): "null",
}  # fmt: skip


def _allowed(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return _KINDS.get(origin, "a table")


def _decode_object(cls: Any, data: dict[str, Any], where: str) -> Any:
    hints = _hints(cls)
    if unknown := data.keys() - hints.keys():
        raise ValueError(f"{where.lstrip('.') or 'it'} has an unknown key {sorted(unknown)[0]!r}")
    needed = (f.name for f in fields(cls) if f.default is f.default_factory is MISSING)
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"{where.lstrip('.') or 'it'} has no {missing[0]!r}")
    return cls(**{key: _decode(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _decode_union(arms: tuple[Any, ...], data: Any, where: str) -> Any:
    """Pick the arm by the shape of the data; dataclass arms by their `type` tag."""
    if data is None and type(None) in arms:
        return None
    failures = []
    for arm in arms:
        default = _type_tag(arm) if is_dataclass(arm) and isinstance(data, dict) else None
        if default is not None and data.get("type", default) != default:
            continue
        try:
            return _decode(arm, data, where)
        except ValueError as error:
            failures.append(error)
    raise failures[0] if failures else ValueError(f"{where.lstrip('.')} is of no known type")


def _type_tag(cls: Any) -> str | None:
    for f in fields(cls):
        if f.name == "type" and isinstance(f.default, str):
            return f.default
    return None
