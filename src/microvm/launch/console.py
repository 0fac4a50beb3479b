"""What comes out of a guest's console: text for people, and our marks cut out of it."""

import re
from collections import deque
from dataclasses import dataclass, field

_START = b"\x1b]6977;"
_MARK = re.compile(rb"\x1b\]6977;(?P<text>[^\x07]*)\x07")
_PANIC = re.compile(r"\[\s*\d+\.\d+\] Kernel panic - not syncing: (?P<why>.*)")
_KERNEL = re.compile(r"\[\s*(?:$|\d)")
"""A line of the kernel's, or the begin of one."""
_LONGEST = 4096
_CONTROL = re.compile(
    r"\x1b(?:\[[0-9;?!]*[A-Za-z]|\][^\x07]*\x07|[c-z=>])|[\x00-\x08\x0b-\x1f\x7f]"
)


@dataclass(slots=True)
class Console:
    """Filters the console's bytes and remembers their last lines."""

    up: bool = False
    """The guest has handed the console to the user."""
    failed: str | None = None
    """Why the guest can't go on."""
    panic: str | None = None
    """Why the kernel panicked, as it said itself (kernel/panic.c), and nothing but the kernel after
    it: a guest that only shows such a text, of another machine or another day, goes on."""
    stopping: bool = False
    """The guest has begun to shut down."""
    ending: str | None = None
    """How the guest's system is about to end: `poweroff`, `reboot` or `halt`."""
    _pending: bytes = b""
    _line: str = ""
    _tail: deque[str] = field(default_factory=lambda: deque(maxlen=30))

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to show; marks are taken out, also when they come in pieces."""
        data = self._pending + data
        shown = b""
        position = 0
        for match in _MARK.finditer(data):
            shown += data[position : match.start()]
            self._take(match["text"].decode(errors="replace"))
            position = match.end()
        rest = data[position:]
        start = _partial(rest)
        self._pending = rest[start:] if len(rest) - start < _LONGEST else b""
        shown += rest[:start] if self._pending else rest
        self._remember(shown)
        return shown

    @property
    def in_line(self) -> bool:
        """Whether the cursor is not at the start of a line."""
        return bool(_CONTROL.sub("", self._line.rpartition("\r")[2]))

    def tail(self, lines: int = 20) -> str:
        """Return the last lines, without control characters, indented."""
        kept = [line for line in (*self._tail, self._line) if line.strip()]
        return "".join(f"\n  {line}" for line in kept[-lines:])

    def _take(self, text: str) -> None:
        kind, _, rest = text.partition(";")
        if kind == "up":
            self.up = True
        elif kind == "failed":
            self.failed = rest
        elif kind == "stopping":
            self.stopping = True
        elif kind == "ending":
            self.ending = rest

    def _remember(self, shown: bytes) -> None:
        *whole, self._line = (self._line + shown.decode(errors="replace")).split("\n")
        for line in whole:
            plain = _CONTROL.sub("", line.rstrip("\r"))
            self._tail.append(plain)
            if self.panic is None and (found := _PANIC.match(plain)):
                self.panic = found["why"]
            else:
                self._heed(plain)
        self._line = self._line[-2000:]
        self._heed(_CONTROL.sub("", self._line))

    def _heed(self, line: str) -> None:
        """Take a panic back when somebody else than the kernel goes on."""
        if line.strip() and not _KERNEL.match(line):
            self.panic = None


def _partial(data: bytes) -> int:
    """Return where a mark that is not complete yet begins, or the data's length."""
    found = data.rfind(b"\x1b")
    if found >= 0:
        head = data[found : found + len(_START)]
        if _START.startswith(head) and b"\x07" not in data[found:]:
            return found
    return len(data)
