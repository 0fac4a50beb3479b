"""A real, signed Debian mirror on this host, made of what a store has downloaded, with faults."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

Fault = Callable[[str], str]
"""Says what becomes of a request: `serve`, `missing`, `stall` or `cut` (half of it is sent)."""

_LIST = re.compile(
    r".*_(?P<root>debian(?:-security)?)_dists_(?P<suite>[a-z-]+)_"
    r"(?P<file>InRelease|[a-z-]+_binary-[a-z0-9]+_Packages)"
)


class Mirror:
    """Serves package lists and packages by the paths that a Debian mirror has."""

    def __init__(self, store: Path, states: Mapping[str, str], packages: Mapping[str, str]) -> None:
        """`states` says which lists of the store, as a lock does; `packages` which paths have
        which SHA-256.
        """
        self.files: dict[str, Path | bytes] = dict(_lists(store, states))
        for path, digest in packages.items():
            self.files[path] = store / f".packages/{digest}.deb"
        self.fault: Fault = lambda path: "serve"
        self.stalled = threading.Event()
        """Set by the first request that gets no answer."""
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/debian"

    @contextmanager
    def running(self) -> Iterator["Mirror"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    mirror._answer(self)
                except OSError:
                    self.close_connection = True  # the client was killed, as some tests do

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(handler.path)
        fate = self.fault(path)
        found = self.files.get(path)
        if fate == "stall":
            handler.close_connection = True
            self.stalled.set()
            self._over.wait()
        elif fate == "missing" or found is None:
            handler.send_error(HTTPStatus.NOT_FOUND)
        else:
            data = found if isinstance(found, bytes) else found.read_bytes()
            handler.send_response(HTTPStatus.OK)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if fate == "cut" else data)
            handler.close_connection = fate == "cut"


def _lists(store: Path, states: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Yield the paths of the lists of these states, and the kept files."""
    for directory in store.glob(".lists/*-state-*"):
        if all(_digest(directory / name) == digest for name, digest in states.items()):
            break
    else:
        raise AssertionError("the store keeps no lists of that state")
    for path in directory.iterdir():
        if match := _LIST.fullmatch(path.name):
            file = match["file"].replace("_", "/")
            yield f"/{match['root']}/dists/{match['suite']}/{file}", path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
