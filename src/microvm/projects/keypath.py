"""Key paths such as `microvms.web.volumes.0.size`, as texts and as their parts."""

import re
from collections.abc import Iterable

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(r"'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<bare>[^.'\"]+)")


def join(parts: Iterable[str | int]) -> str:
    """Return a path as text; parts with dots or other odd characters stand between quotes."""
    return ".".join(text if _BARE.fullmatch(text := str(part)) else repr(text) for part in parts)


def split(path: str) -> tuple[str, ...]:
    """Return the parts of what `join` wrote."""
    return tuple(
        next(text for text in match.groups() if text is not None) for match in _PART.finditer(path)
    )
