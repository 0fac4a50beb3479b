"""`--set mem=1024 --set volumes.0.size=2048`: fields changed for one command."""

import tomllib
from collections.abc import Sequence
from typing import Any

from microvm.errors import Problem, SpecError


def apply(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a MicroVM's table with the overrides applied. Raises `SpecError` for a wrong one."""
    changed: dict[str, Any] = _copy(table)
    problems = []
    for override in overrides:
        path, mark, value = override.partition("=")
        if not mark or not path:
            problems.append(Problem(where=f"--set {override}", message="it is not KEY=VALUE"))
            continue
        try:
            _set(changed, path.split("."), parse_value(value))
        except (LookupError, TypeError, ValueError):
            message = "there is nothing at that path to change"
            problems.append(Problem(where=f"--set {override}", message=message))
    if problems:
        raise SpecError(problems)
    return changed


def parse_value(text: str) -> Any:
    """Return a value as TOML spells it; what TOML does not read is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _set(target: Any, path: list[str], value: Any) -> None:
    first, *rest = path
    if isinstance(target, list):
        index = int(first)
        if index == len(target):
            target.append({} if rest else value)
        if rest:
            _set(target[index], rest, value)
        else:
            target[index] = value
    elif isinstance(target, dict):
        if rest:
            _set(target.setdefault(first, [] if rest[0] == "0" else {}), rest, value)
        else:
            target[first] = value
    else:
        raise TypeError(first)
