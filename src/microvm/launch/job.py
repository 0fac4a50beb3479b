"""The host's side of a job: frames over the job stream, our standard streams at the other end."""

from collections.abc import Callable
from dataclasses import dataclass, field

HEADER = 5
CHUNK = 32768
WINDOW = 262144
"""Bytes of input kept for the guest before we stop reading our own standard input."""


def frame(kind: str, payload: bytes = b"") -> bytes:
    """Return one frame: type, length, payload."""
    return kind.encode() + len(payload).to_bytes(4, "big") + payload


@dataclass(slots=True)
class JobStream:
    """Speaks the protocol; bytes come in by `receive`, go out of `outgoing`."""

    command: tuple[str, ...]
    directory: str = ""
    user: str = ""
    write: Callable[[int, bytes], None] = lambda descriptor, data: None
    """Takes standard output (1) and error (2) of the job."""
    outgoing: bytearray = field(default_factory=bytearray)
    started: bool = False
    status: int | None = None
    """The job's exit status."""
    failure: str | None = None
    """Why the job could not be started."""
    _incoming: bytearray = field(default_factory=bytearray)

    def receive(self, data: bytes) -> None:
        """Take bytes from the guest."""
        self._incoming += data
        while len(self._incoming) >= HEADER:
            length = int.from_bytes(self._incoming[1:HEADER], "big")
            if len(self._incoming) < HEADER + length:
                return
            kind = chr(self._incoming[0])
            payload = bytes(self._incoming[HEADER : HEADER + length])
            del self._incoming[: HEADER + length]
            self._take(kind, payload)

    def _take(self, kind: str, payload: bytes) -> None:
        if kind == "h" and not self.started:
            self.started = True
            words = (self.directory, self.user, *self.command)
            self.outgoing[:0] = frame("j", "\0".join(words).encode(errors="surrogateescape"))
        elif kind == "o":
            self.write(1, payload)
        elif kind == "e":
            self.write(2, payload)
        elif kind == "x":
            self.status = int(payload)
            self._let_go()
        elif kind == "f":
            self.failure = payload.decode(errors="replace")
            self._let_go()

    def _let_go(self) -> None:
        """Tell the guest that everything has arrived: it powers off after that."""
        self.outgoing += frame("d")

    @property
    def ended(self) -> bool:
        """Whether the job has ended or could not be started."""
        return self.status is not None or self.failure is not None

    @property
    def wants_input(self) -> bool:
        """Whether there is room for more of our standard input."""
        return self.started and len(self.outgoing) < WINDOW

    def input(self, data: bytes) -> None:
        """Pass standard input on; empty data is its end."""
        self.outgoing += frame("i", data) if data else frame("z")

    def signal(self, number: int) -> None:
        """Send a signal to the job."""
        self.outgoing += frame("s", str(number).encode())
