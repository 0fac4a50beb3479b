"""What is measured: contenders that take turns, and the rows of numbers that come of it."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class PeerError(Exception):
    """A peer can't be measured; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One of those that take turns."""

    name: str
    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    """What has to be undone first; it is not timed."""

    def measure(self) -> tuple[float, float]:
        """Return the seconds it took by the clock, and of the processors in its processes."""
        self.before()
        began, used = time.monotonic(), _processor_time()
        self.run()
        return time.monotonic() - began, _processor_time() - used


@dataclass(frozen=True)
class Series:
    """The numbers of one contender, or why there are none."""

    name: str
    numbers: tuple[float, ...] = ()
    missing: str = ""
    processor: tuple[float, ...] = ()
    """The same runs in seconds of processor time, which a busy machine disturbs less."""

    @property
    def median(self) -> float:
        """The median; it is an error to ask for that of a series without numbers."""
        return statistics.median(self.numbers)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A number to reach."""

    at_most: float
    stretch: float | None = None
    relative: bool = False
    """Times the first peer, not units of our own number."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    ours: Series
    unit: str = "s"
    peers: tuple[Series, ...] = ()
    bound: Bound | None = None
    how: str = ""
    """What is counted on either side."""
    why: str = ""
    """What the number consists of, said where a number to reach is missed."""

    def ratio(self, peer: Series) -> float | None:
        """Return ours divided by a peer's, or None where one is missing."""
        if not self.ours.numbers or not peer.numbers:
            return None
        return self.ours.median / peer.median

    def value(self) -> float | None:
        """Return what the bound is about, or None where it was not measured."""
        if self.bound and self.bound.relative:
            return self.ratio(self.peers[0])
        return self.ours.median if self.ours.numbers else None


def interleaved(rounds: int, contenders: Sequence[Contender]) -> list[Series]:
    """Let contenders take turns; one that fails is out, with the reason in its series."""
    numbers: dict[str, list[tuple[float, float]]] = {each.name: [] for each in contenders}
    missing: dict[str, str] = {}
    for turn in range(rounds):
        # Whoever goes first meets the caches as the last one left them: that changes too.
        shift = turn % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            if contender.name in missing:
                continue
            try:
                numbers[contender.name].append(contender.measure())
            except PeerError as error:
                missing[contender.name] = str(error)
    return [
        absent(name, missing[name])
        if name in missing
        else Series(
            name, tuple(clock for clock, _ in found), processor=tuple(used for _, used in found)
        )
        for name, found in numbers.items()
    ]


def absent(name: str, reason: str) -> Series:
    """Return the series of a contender that could not start."""
    return Series(name, missing=reason)


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
