"""`--set mem=1024 --set volumes.0.size=2048`: fields changed for one command."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.model.constraints import DEPTH
from microvm.projects import toml

_PART = re.compile(r"\"[^\"]*\"|'[^']*'|[^.\"'=]+")
_OVERRIDE = re.compile(
    rf"(?P<path>(?:{_PART.pattern})(?:\.(?:{_PART.pattern}))*)=(?P<value>.*)", re.DOTALL
)
"""A part with dots in it stands between quotes, as in TOML: `system.files."/etc/x.conf".mode`."""


def apply(table: dict[str, Any], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return a MicroVM's table with the overrides applied, each after the words that gave it.

    Raises `SpecError` for a wrong one.
    """
    changed: dict[str, Any] = _copy(table)
    problems = []
    for words, override in overrides:
        try:
            path, value = parse(override)
            _set(changed, path, value)
        except (LookupError, TypeError):
            message = "there is nothing at that path to change"
            problems.append(Problem(where=words, message=message))
        except ValueError as error:
            problems.append(Problem(where=words, message=str(error)))
    if problems:
        raise SpecError(problems)
    return changed


def parse(override: str) -> tuple[list[str], Any]:
    """Return path and value of `KEY=VALUE`. Raises `ValueError` that says what is wrong."""
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        raise ValueError("it is not KEY=VALUE")
    path = [part.strip("\"'") for part in _PART.findall(match["path"])]
    if len(path) > DEPTH:
        raise ValueError(f"the key has more than {DEPTH} parts")
    return path, parse_value(match["value"])


def parse_value(text: str) -> Any:
    """Return a value as TOML spells it; what TOML does not read is a text.

    Raises `ValueError` for one that nobody means, such as a number of 5000 digits.
    """
    try:
        tables = toml.parse(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tables["value"] if len(tables) == 1 else text


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _set(target: Any, path: list[str], value: Any) -> None:
    first, *rest = path
    if isinstance(target, list):
        if not (first.isascii() and first.isdigit()):
            raise LookupError(first)
        index = int(first[:9])
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
