"""What can go wrong, as one tree of exceptions and the `Problem` that a check reports."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a declaration."""

    message: str
    """What is wrong, with the value and what is allowed."""
    where: str = ""
    """Key path inside the declaration, such as `microvms.web.volumes.0.size`."""
    file: str | None = None
    """File that holds the key."""
    line: int | None = None
    """Line of the key in the file, counted from 1."""
    hint: str | None = None
    """What to do about it."""

    def __str__(self) -> str:
        """Return it as lines for people."""
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        parts = [part for part in (place, self.where, self.message) if part]
        text = ": ".join(parts)
        return printable(f"{text}\n    {self.hint}" if self.hint else text)


def printable(text: str) -> str:
    """Return a text without escape sequences, which a project's words may hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class MicroVMError(Exception):
    """Root of everything that this package raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(MicroVMError):
    """A declaration or reference is not valid; holds every problem found."""

    exit_code = 3

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        super().__init__("\n".join(str(problem) for problem in problems), hint=hint)
        self.problems = tuple(problems)


class HostError(MicroVMError):
    """The host lacks a program, a device, a permission or space."""

    exit_code = 4


class StateError(MicroVMError):
    """Something is in another state than the operation needs; the message names both."""

    exit_code = 5


class CommandFailed(MicroVMError):
    """A program that we ran ended with an error; the message shows it replayable, with its last
    words.
    """

    def __init__(
        self, message: str, *, argv: Sequence[str], returncode: int | None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = tuple(argv)
        self.returncode = returncode


class ApiError(MicroVMError):
    """A VMM refused a request or answered something else than its protocol says."""


class Unreachable(ApiError):
    """Nobody listens on a VMM's socket."""


class UnsupportedOperation(MicroVMError):
    """The hypervisor can't do what was asked of the running VMM."""


class DeadlineExceeded(MicroVMError):
    """Something did not happen within its time limit."""
