"""Package lists of one set of sources, kept for the states of the mirrors that locks speak of."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from microvm.host import files
from microvm.store import item_name

KEPT = 3
"""How many states are kept: each is some 60 MB."""


class Lists:
    """The directory in which apt fetches lists, and beside it the states that it had."""

    def __init__(self, current: Path) -> None:
        self.current = current

    @contextmanager
    def held(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep other processes away; waits for them, and calls `waiting` before it does."""
        with files.lock(self.current.with_suffix(".lock"), waiting=waiting):
            yield

    def find(self, known: Sequence[Mapping[str, str]]) -> Path | None:
        """Return the lists of the first of these states of the mirrors that is kept."""
        for states in known:
            path = self._path(states)
            if path.is_dir():
                os.utime(path)
                return path
        return None

    def keep(self, states: Mapping[str, str]) -> None:
        """Keep the current lists under their state; forget the states not used for longest."""
        target = self._path(states)
        # Half of a state must not be taken for one: it is made and removed under another name.
        half = self.current.with_name(f"{self.current.name}-half")
        if half.exists():
            shutil.rmtree(half)
        if not target.is_dir():
            # Links: apt replaces lists and never writes into one.
            shutil.copytree(self.current, half, copy_function=os.link)
            files.sync_filesystem(half)
            half.rename(target)
        os.utime(target)
        os.utime(self.current)
        states_kept = self.current.parent.glob(f"{self.current.name}-state-*")
        for path in sorted(states_kept, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            path.rename(half)
            shutil.rmtree(half)

    def _path(self, states: Mapping[str, str]) -> Path:
        digest = item_name("state", dict(states)).partition("-")[0]
        return self.current.with_name(f"{self.current.name}-state-{digest}")
