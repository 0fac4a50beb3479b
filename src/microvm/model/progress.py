"""What long work tells while it lasts: events, which a client may show."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of long work."""

    step: str
    """What is being done, in a few words: `download packages`, `base layer`."""
    detail: str = ""
    """A line about it, such as a file name or a program's output."""
    done: int | None = None
    """Bytes or items done so far; unset where that isn't counted."""
    total: int | None = None
    """Bytes or items in all."""
    finished: bool = False
    """The step has ended well."""
    note: bool = False
    """A result or a choice that people are told: it stays on the screen."""


Progress = Callable[[Event], None]
"""Takes events; it must be quick and must not raise."""


def counted(number: int, noun: str) -> str:
    """Return `1 package`, `2 packages`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def silent(event: Event) -> None:
    """Take an event and show nothing."""
