"""What is valid of a declaration that is not: the rules look at it, so that all is told at once."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from microvm.errors import Problem
from microvm.model.declaration import MicroVM
from microvm.projects.lone_rules import NEEDS

Path = tuple[str | int, ...]

_BY_NAME = ("users", "files", "units", "credential_files")
"""Tables whose keys the user chooses: an entry can go without the others."""
_NEEDED = (
    ("system.users", "system.autologin"),
    *((left, right) for need in NEEDS for left in need.reads for right in need.options),
)
"""Without the left side, a rule may miss on the right one what is there."""


@dataclass(frozen=True, slots=True)
class Part:
    """A MicroVM, or what is left of it without the values that are no valid ones."""

    microvm: MicroVM
    left_out: frozenset[Path] = field(default_factory=frozenset)

    def lacks(self, option: str) -> bool:
        """Return whether an option of the MicroVM was left out."""
        return (option,) in self.left_out

    def told(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return what rules found, less what they can't know, with the declaration's indices."""
        if not self.left_out:
            return list(problems)
        gone = [".".join(map(str, path)) for path in self.left_out]
        doubtful = tuple(
            right
            for left, right in _NEEDED
            if any(path == left or path.startswith(f"{left}.") for path in gone)
        )
        return [
            replace(
                problem,
                where=self._as_declared(problem.where),
                message=self._as_declared(problem.message),
            )
            for problem in problems
            if not problem.where.startswith(doubtful or ("\0",))
        ]

    def _as_declared(self, text: str) -> str:
        """Count the items of lists as the user does."""
        lists: dict[str, set[int]] = {}
        for path in self.left_out:
            if isinstance(path[-1], int):
                lists.setdefault(".".join(map(str, path[:-1])), set()).add(path[-1])
        for name, indices in lists.items():

            def declared(match: re.Match[str], gone: set[int] = indices) -> str:
                kept = (n for n in range(int(match[2]) + len(gone) + 1) if n not in gone)
                return f"{match[1]}{list(kept)[int(match[2])]}"

            text = re.sub(rf"(\b{re.escape(name)}\.)(\d+)", declared, text)
        return text


def without(table: Mapping[str, Any], locations: Iterable[Path]) -> tuple[Any, frozenset[Path]]:
    """Return a table without what holds the locations, and what was left out."""
    left_out = frozenset(_unit(table, location) for location in locations if location)
    return _pruned(table, (), left_out), left_out


def _unit(table: Mapping[str, Any], location: Path) -> Path:
    """Return the smallest thing that can be left out: an option, or an item of a list or table."""
    size = 2 if location[0] == "system" and len(location) > 1 else 1
    value: Any = table
    for part in location[:size]:
        value = value.get(part) if isinstance(value, Mapping) else None
    named = isinstance(value, Mapping) and location[size - 1] in _BY_NAME
    if len(location) > size and (named or isinstance(value, list | tuple)):
        size += 1
    return location[:size]


def _pruned(value: Any, path: Path, left_out: frozenset[Path]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _pruned(item, (*path, key), left_out)
            for key, item in value.items()
            if (*path, key) not in left_out
        }
    if isinstance(value, list | tuple):
        return [
            _pruned(item, (*path, index), left_out)
            for index, item in enumerate(value)
            if (*path, index) not in left_out
        ]
    return value
