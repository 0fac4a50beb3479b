"""Projects written in TOML: `[defaults]` and `[microvms.NAME]`."""

import re
import tomllib
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.model.constraints import DEPTH

_HEADER = re.compile(r"^\s*\[{1,2}(?P<path>[^\]]+)\]")
_KEY = re.compile(
    r"^\s*(?P<path>(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*="
)
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)")


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a file. Raises `SpecError` with the line of a syntax error."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+)", str(error))
        line = int(match[1]) if match else None
        raise SpecError([Problem(file=str(path), line=line, message=str(error))]) from error
    except (OSError, ValueError) as error:
        message = f"it can't be read: {_why(error)}"
        raise SpecError([Problem(file=str(path), message=message)]) from error


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: {error.reason} at byte {error.start}"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def parse(text: str) -> dict[str, Any]:
    """Return the tables of a text. Raises `tomllib.TOMLDecodeError`, `ValueError` that says why."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from error
    except ValueError as error:  # Python's limit for decimal numbers
        raise ValueError("a number in it has too many digits") from error
    if is_deep(tables):
        raise ValueError(f"it is nested deeper than {DEPTH} levels")
    return tables


def is_deep(value: object) -> bool:
    """Whether a value is nested deeper than `DEPTH` levels."""
    level: list[object] = [value]
    for _ in range(DEPTH):
        inner = [item for item in level if isinstance(item, dict | list | tuple)]
        level = [
            part for item in inner for part in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each table and key, by its path; items of lists count from 0.

    A scan for messages, not a parser: keys inside inline tables and long strings are not found, and
    their nearest parent stands for them.
    """
    found: dict[tuple[str, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        if match := _HEADER.match(line):
            path = table = _resolve(
                _parts(match["path"]), counts, new=line.lstrip().startswith("[[")
            )
        elif match := _KEY.match(line):
            path = (*table, *_parts(match["path"]))
        else:
            continue
        for size in range(1, len(path) + 1):
            found.setdefault(path[:size], number)  # a table is where its first key is
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
