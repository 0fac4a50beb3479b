"""A running kvmtool, by its IPC socket and the guest's own ear for a power-off.

kvm-ipc.c: `struct kvm_ipc_head { u32 type; u32 len; }` and the payload. One request a connection:
a client that stays keeps the others waiting. No answer: it closes a connection that it has read.
"""

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from microvm.errors import ApiError, DeadlineExceeded, UnsupportedOperation
from microvm.host import files, stream, vsock
from microvm.host.process import Deadline
from microvm.hypervisors.control import Ballooning, Pausable
from microvm.hypervisors.kvmtool import BALLOON, POWER_CID, POWER_KEY, POWER_PORT
from microvm.hypervisors.socket_control import SocketControl

_BALLOON, _PAUSE, _RESUME, _STOP = 1, 4, 5, 6
NUDGE_S = 0.5
"""After this a request that was not taken is helped along."""


class KvmtoolControl(SocketControl, Ballooning, Pausable):
    """One kvmtool whose socket is `STATE/.lkvm/vm.sock`."""

    vmm = "kvmtool"

    def __init__(self, path: Path, *, timeout_s: float, mem_mib: int) -> None:
        """Raise `Unreachable` when nobody listens there."""
        super().__init__(path, timeout_s=timeout_s)
        self._state_dir = path.parent.parent
        self._mem_mib = mem_mib

    def shut_down(self, *, power_button: bool) -> None:
        """Ask the guest over vsock: kvmtool has no button and no keys."""
        try:
            context = int((self._state_dir / POWER_CID).read_text())
            secret = (self._state_dir / POWER_KEY).read_text()
        except (OSError, ValueError) as error:
            raise UnsupportedOperation(
                "kvmtool's guest can't be asked to shut down: the host has no /dev/vhost-vsock",
                hint="modprobe vhost_vsock, and start it again",
            ) from error
        vsock.send(context, POWER_PORT, secret.encode(), timeout_s=self._timeout_s)

    def quit(self) -> None:
        """Reset the guest, which ends kvmtool."""
        self._send(_STOP)

    def set_memory(self, size_mib: int) -> None:
        """Take or give the difference: the protocol knows no absolute size."""
        self._must_fit(size_mib, self._mem_mib)
        record = self._state_dir / BALLOON
        with files.lock(record.with_suffix(".lock")):
            try:
                held = int(record.read_text())
            except (OSError, ValueError) as error:
                raise ApiError(f"could not tell how much the balloon holds: {record}") from error
            wanted = self._mem_mib - size_mib
            if wanted != held:
                # Written first: what is sent is carried out some time, also when we give up.
                write = partial(files.write_atomic, record, f"{wanted}\n", 0o600)
                self._send(_BALLOON, struct.pack("i", wanted - held), reached=write)

    def pause(self) -> None:
        """Pause."""
        self._send(_PAUSE)

    def resume(self) -> None:
        """Resume."""
        self._send(_RESUME)

    def _send(
        self, kind: int, payload: bytes = b"", *, reached: Callable[[], None] = lambda: None
    ) -> None:
        with stream.reach(self._path, name=self.vmm, timeout_s=self._timeout_s) as connection:
            reached()
            deadline = Deadline(self._timeout_s)
            connection.settimeout(self._timeout_s)
            try:
                connection.sendall(struct.pack("II", kind, len(payload)) + payload)
            except OSError as error:
                raise ApiError(f"kvmtool does not take requests: {error.strerror}") from error
            while not stream.done_with(connection, within_s=NUDGE_S):
                if deadline.expired:
                    raise DeadlineExceeded(
                        "kvmtool did not take a request in time; it does so when it goes on"
                    )
                # It accepts one connection each time it wakes (EPOLLET), so that one of two that
                # come together, as another program's and this one, waits until a third comes.
                if nudge := stream.connect(self._path):
                    nudge.close()
