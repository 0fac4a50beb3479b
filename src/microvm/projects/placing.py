"""Where a problem is: in which file, on which line, in a MicroVM's own table or in the defaults."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microvm.errors import Problem
from microvm.projects import keypath, toml
from microvm.projects.merging import appended

Parts = tuple[str, ...]


def place(
    problems: Sequence[Problem],
    file: Path,
    tables: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]],
) -> tuple[Problem, ...]:
    """Return each problem once, with its place, in the order of the file.

    `overrides` belong to the command line, each after its words there: what they say is not looked
    for in the file.
    """
    if not problems:
        return ()
    # Lines are looked for only when there is something to tell.
    found = toml.lines(file.read_text(encoding="utf-8")) if file.suffix == ".toml" else {}
    changed = {keypath.split(text.partition("=")[0]): words for words, text in overrides}
    placed = dict.fromkeys(_placed(problem, file, found, tables, changed) for problem in problems)
    return tuple(sorted(placed, key=lambda problem: problem.line or 0))


def _placed(
    problem: Problem,
    file: Path,
    lines: dict[Parts, int],
    tables: Mapping[str, Any],
    changed: Mapping[Parts, str],
) -> Problem:
    parts = keypath.split(problem.where)
    if problem.where.startswith("--") or problem.file:
        return problem
    if parts[:1] == ("microvms",) and len(parts) > 2:
        for path, words in changed.items():
            size = min(len(path), len(parts) - 2)
            if parts[2 : 2 + size] == path[:size]:
                return replace(problem, where=f"{words}: {problem.where}")
        own = tables["microvms"].get(parts[1])
        parts = tuple(_declared(parts[2:], tables.get("defaults"), own, parts[:2]))
    line = toml.line_of(lines, parts)
    return replace(problem, where=keypath.join(parts), file=str(file), line=line)


def _declared(path: Parts, defaults: Any, own: Any, prefix: Parts) -> Iterator[str]:
    """Yield the path in the file of what is at a path of a MicroVM's table over the defaults."""
    walked: list[str] = []
    for depth, part in enumerate(path):
        ours, theirs = _child(own, part), _child(defaults, part)
        both = isinstance(own, list) and isinstance(defaults, list)
        if both and part.isdigit():
            index = int(part)
            kept = [number for number, item in enumerate(own) if item not in defaults]
            if index < len(defaults):
                yield from ("defaults", *walked, *path[depth:])
            else:
                shown = kept[index - len(defaults)] if index - len(defaults) < len(kept) else index
                yield from (*prefix, *walked, str(shown), *path[depth + 1 :])
            return
        mixed = isinstance(ours, dict) and isinstance(theirs, dict)
        if not mixed and not (appended(part) and None not in (ours, theirs)):
            start = ("defaults",) if ours is None and theirs is not None else prefix
            yield from (*start, *walked, *path[depth:])
            return
        walked.append(part)
        own, defaults = ours, theirs
    yield from (*prefix, *walked)


def _child(table: Any, part: str) -> Any:
    return table.get(part) if isinstance(table, dict) else None
