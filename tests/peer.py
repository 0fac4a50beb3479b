"""The other end of a Unix socket, in a thread of the test's."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from microvm.host import stream

PATIENCE_S = 45


@contextmanager
def listening(path: Path, work: Callable[[socket.socket], object]) -> Iterator[None]:
    """Do `work` with a listening socket meanwhile; whatever goes wrong there fails the test."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        with stream.address(path) as name:  # however long the path is
            listener.bind(name)
        listener.listen(8)
        listener.settimeout(PATIENCE_S)
        done = pool.submit(work, listener)
        yield
        done.result(PATIENCE_S)
