"""How much of a disk files take."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from microvm.host.namespace import Bind, IdRange, run_inside
from microvm.model.progress import Progress

TIMEOUT_S = 600


def freed(paths: Iterable[Path]) -> int:
    """Return the bytes that deleting these trees gives back; hard links elsewhere keep theirs."""
    total = 0
    linked: dict[tuple[int, int], tuple[int, os.stat_result]] = {}
    for path in paths:
        for info in _walk(path):
            if stat.S_ISDIR(info.st_mode) or info.st_nlink == 1:
                total += info.st_blocks * 512
            else:
                key = (info.st_dev, info.st_ino)
                linked[key] = (linked.get(key, (0, info))[0] + 1, info)
    return total + sum(i.st_blocks * 512 for count, i in linked.values() if count >= i.st_nlink)


def each(paths: Sequence[Path], ids: Callable[[], IdRange]) -> list[int]:
    """Return what deleting each directory gives back, also what is closed to all but some ids.

    `ids` returns those. Raises `HostError` where the host allows no user namespace.
    """
    if os.geteuid() == 0 or not paths:
        return [freed([path]) for path in paths]
    binds = {str(number): Bind(path) for number, path in enumerate(paths)}
    found: list[int] = run_inside(
        f"{__name__}:measure", {"count": len(paths)}, doing="measure what the store holds",
        binds=binds, ids=ids(), timeout_s=TIMEOUT_S,
    )  # fmt: skip
    return found


def measure(arguments: Any, paths: dict[str, Path], report: Progress) -> list[int]:
    """Task: measure the directories `0` to `count`."""
    return [freed([paths[str(number)]]) for number in range(arguments["count"])]


def _walk(path: Path) -> Iterator[os.stat_result]:
    """Yield what is there, as far as it can be seen; others may be deleting it meanwhile."""
    try:
        info = path.lstat()
    except OSError:
        return
    yield info
    queue: list[str | Path] = [path] if stat.S_ISDIR(info.st_mode) else []
    while queue:
        try:
            entries = [*os.scandir(queue.pop())]
        except OSError:
            continue
        for entry in entries:
            try:
                yield entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                queue.append(entry.path)
