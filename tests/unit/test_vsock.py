"""The host's end of guests' connections to it."""

import socket
from pathlib import Path

import pytest

from microvm.errors import HostError
from microvm.host import vsock

PORT = 0x8000_7A11
LOCAL = 1
"""VMADDR_CID_LOCAL (vsock(7))."""


@pytest.fixture(autouse=True)
def _vsock():
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        pytest.skip(f"the kernel module vsock is missing: {error}")


def test_nobody_has_come_yet():
    with vsock.listening(PORT) as listener:
        assert vsock.accept(listener, 3) is None


def test_a_port_that_is_taken_is_told_and_is_free_afterwards():
    taken = pytest.raises(HostError, match=rf"can't listen on vsock port {PORT}: .*in use")
    with vsock.listening(PORT), taken, vsock.listening(PORT):
        pass
    with vsock.listening(PORT) as listener:
        assert listener.getsockname()[1] == PORT


@pytest.mark.skipif(
    not Path("/sys/module/vsock_loopback").exists(),
    reason="the kernel module vsock_loopback is missing",
)
def test_others_than_the_guest_are_turned_away():
    """A process of the host reaches the port too where the kernel loops vsock back."""
    stranger = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    with vsock.listening(PORT) as listener, stranger:
        stranger.settimeout(5)
        stranger.connect((LOCAL, PORT))
        assert vsock.accept(listener, 3) is None
        assert stranger.recv(1) == b""
        assert vsock.accept(listener, 3) is None
