"""Projects written in TOML: `[defaults]` and `[microvms.NAME]`."""

import re
import tomllib
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError

_HEADER = re.compile(r"^\s*\[{1,2}\s*(?P<path>[^\]]+?)\s*\]{1,2}")
_KEY = re.compile(
    r"^\s*(?P<path>(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*="
)
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)")


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a file. Raises `SpecError` with the line of a syntax error."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+)", str(error))
        line = int(match[1]) if match else None
        raise SpecError([Problem(file=str(path), line=line, message=str(error))]) from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            message = f"it is not UTF-8: {error.reason} at byte {error.start}"
        else:
            message = f"it can't be read: {error}"
        raise SpecError([Problem(file=str(path), message=message)]) from error
    except OSError as error:
        message = f"it can't be read: {error.strerror}"
        raise SpecError([Problem(file=str(path), message=message)]) from error


def lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each table and key, by its path; items of lists count from 0.

    A scan for messages, not a parser: keys inside inline tables and long strings are not found, and
    their nearest parent stands for them.
    """
    found: dict[tuple[str, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := _HEADER.match(line):
            table = _resolve(_parts(match["path"]), counts, new=line.lstrip().startswith("[["))
            found.setdefault(table, number)
        elif match := _KEY.match(line):
            found.setdefault((*table, *_parts(match["path"])), number)
    return found


def line_of(found: dict[tuple[str, ...], int], path: tuple[str, ...]) -> int | None:
    """Return the line of a path or of its nearest parent."""
    while path:
        if path in found:
            return found[path]
        path = path[:-1]
    return None


def _parts(path: str) -> tuple[str, ...]:
    return tuple(
        next(part for part in match if part is not None)
        for match in (m.groups() for m in _PART.finditer(path))
    )


def _resolve(
    path: tuple[str, ...], counts: dict[tuple[str, ...], int], *, new: bool
) -> tuple[str, ...]:
    """Put the index of the current item after each array of tables in a header's path."""
    resolved: tuple[str, ...] = ()
    for depth, part in enumerate(path):
        resolved = (*resolved, part)
        if new and depth == len(path) - 1:
            counts[resolved] = counts.get(resolved, -1) + 1
        if resolved in counts:
            resolved = (*resolved, str(counts[resolved]))
    return resolved
