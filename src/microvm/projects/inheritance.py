"""MicroVMs' tables over the project's defaults, of which each takes what has an effect in it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.projects import keypath, lone_rules
from microvm.projects import overrides as overriding
from microvm.projects.merging import merge

Parts = tuple[str, ...]
Changes = Sequence[tuple[str, str]]
"""Overrides, each after the words that gave it."""


def complete(
    defaults: Mapping[str, Any], owns: Mapping[str, Any], changes: Mapping[str, Changes]
) -> tuple[dict[str, Any], list[Problem]]:
    """Return each MicroVM's table over the defaults and below its changes, and what is wrong there.

    A default that has no effect in a MicroVM is left out of its table. One that has none in any
    stays in all: it is refused as an option of their own would be.
    """
    tables: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, own in owns.items():
        try:
            table = _merged(defaults, own)
            tables[name] = overriding.apply(table, changes[name]) if name in changes else table
        except SpecError as error:
            problems += error.problems
    if not defaults:
        return tables, problems
    idle = {
        name: _idle(table, defaults, owns[name], changes.get(name, ()))
        for name, table in tables.items()
    }
    declared = [
        _idle(_merged(defaults, own), defaults, own, ()) if name in changes else idle[name]
        for name, own in owns.items()
    ]
    useless = frozenset.intersection(*declared, *idle.values())
    return {name: _without(table, idle[name] - useless) for name, table in tables.items()}, problems


def _merged(defaults: Mapping[str, Any], own: Any) -> Any:
    return merge(defaults, own) if isinstance(own, dict) else own


def _idle(table: Any, defaults: Mapping[str, Any], own: Any, changes: Changes) -> frozenset[Parts]:
    """Return the key paths of what a table has from the defaults alone, and to no effect."""
    from microvm.projects.validation import valid_part

    given = [keypath.split(text.partition("=")[0]) for _, text in changes]
    found: frozenset[Parts] = frozenset()
    while isinstance(table, dict):
        part, _ = valid_part(_without(table, found), "")
        if part is None:
            break
        lone = part.told(lone_rules.lone(part.microvm, Path()))
        paths = {keypath.split(problem.where) for problem in lone}
        more = {path for path in paths - found if _is_inherited(path, defaults, own, given)}
        if not more:
            break
        found |= more  # without them others may have lost what they need
    return found


def _is_inherited(path: Parts, defaults: Any, own: Any, given: Collection[Parts]) -> bool:
    """Return whether a value is of the defaults: neither the MicroVM nor a change says it."""
    for part in path:
        if not isinstance(defaults, dict) or part not in defaults:
            return False
        defaults, own = defaults[part], own.get(part) if isinstance(own, dict) else own
    return own is None and not any(path[: len(other)] == other[: len(path)] for other in given)


def _without(table: Any, paths: Collection[Parts], at: Parts = ()) -> Any:
    if not isinstance(table, dict) or not paths:
        return table
    return {
        key: _without(value, paths, (*at, key))
        for key, value in table.items()
        if (*at, key) not in paths
    }
