"""The host's side of a job: frames over the job stream, our standard streams at the other end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from microvm.launch.keys import doubled

HEADER = 5
CHUNK = 32768
WINDOW = 262144
"""Bytes of input kept for the guest before we stop reading our own standard input."""
STREAM_WINDOW = 131072
"""Bytes of input under way. The guest's side keeps twice as much before it stops reading: signals,
which come behind the input, always reach it, also when the job reads nothing."""
LINE_WINDOW = 2048
"""Bytes of input under way on a serial line, which loses what the guest's tty has no room for: 4096
in raw mode (N_TTY_BUF_SIZE, drivers/tty/n_tty.c), the frames' headers among them."""
SMALL = 256
"""Bytes of input that wait for more, or for what is under way: headers would fill the line."""


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
    window: int = STREAM_WINDOW
    """Most bytes of input that may be under way: sent, and not told to have reached the job."""
    escape: bytes = b""
    """The byte that has to be said twice."""
    outgoing: bytearray = field(default_factory=bytearray)
    started: bool = False
    status: int | None = None
    """The job's exit status."""
    failure: str | None = None
    """Why the job could not be started."""
    _incoming: bytearray = field(default_factory=bytearray)
    _waiting: bytearray = field(default_factory=bytearray)
    _under_way: int = 0
    _input_ended: bool = False

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
            try:
                self._take(kind, payload)
            except ValueError:  # whoever has the guest can send anything
                self.failure = f"the guest sent what is no number: {payload[:20]!r}"

    def _take(self, kind: str, payload: bytes) -> None:
        if kind == "h" and not self.started:
            self.started = True
            words = (self.directory, self.user, *self.command)
            command = "\0".join(words).encode(errors="surrogateescape")
            self.outgoing[:0] = doubled(frame("j", command), self.escape)
        elif kind == "a":
            self._under_way -= int(payload)
            self._pass_input_on()
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
        self._send("d")

    def _send(self, kind: str, payload: bytes = b"") -> None:
        self.outgoing += doubled(frame(kind, payload), self.escape)

    def _pass_input_on(self) -> None:
        """Send as much input as may be under way, then its end."""
        while self._waiting and self._under_way < self.window:
            part = bytes(self._waiting[: min(self.window - self._under_way, CHUNK)])
            if self._under_way and len(part) < SMALL:
                break
            del self._waiting[: len(part)]
            self._under_way += len(part)
            self._send("i", part)
        if self._input_ended and not self._waiting:
            self._input_ended = False
            self._send("z")

    @property
    def ended(self) -> bool:
        """Whether the job has ended or could not be started."""
        return self.status is not None or self.failure is not None

    @property
    def wants_input(self) -> bool:
        """Whether there is room for more of our standard input."""
        return self.started and len(self.outgoing) + len(self._waiting) < WINDOW

    def input(self, data: bytes) -> None:
        """Pass standard input on; empty data is its end."""
        self._waiting += data
        self._input_ended = self._input_ended or not data
        self._pass_input_on()

    def signal(self, number: int) -> None:
        """Send a signal to the job."""
        self._send("s", str(number).encode())
