"""Downloads of single files over HTTP: bounded in time and size, and worth nothing until their
SHA-256 has been seen.
"""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from microvm.errors import HostError, MicroVMError
from microvm.host.process import Deadline
from microvm.model.progress import Event, Progress, silent

STALL_S = 30.0
"""A server that sends nothing for so long has given up."""
TIMEOUT_S = 3600.0
"""For all of a file: 100 MB take an hour at 230 kbit/s."""
LARGEST = 512 << 20
"""Bytes; what is larger is no program of a hypervisor, whatever it is."""

_AGAIN = "run the same command again, or name another server (`--mirror`)"
_HANDLERS = (
    urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
)  # fmt: skip
"""Those of HTTP alone: a redirection must not lead to a file of this host."""


def download(
    url: str, target: Path, sha256: str, *, progress: Progress = silent, stall_s: float = STALL_S
) -> None:
    """Fetch a file and check it; certificates are verified, proxies taken from the environment.

    Raises `MicroVMError` for a server that fails or sends something else, `HostError` for one
    that can't be reached, `OSError` of the disk. What is at `target` then is not to be used.
    """
    if not re.match(r"https?://[^/]", url):
        raise MicroVMError(
            f"could not download {url}: it is no address of a web server",
            hint="say one that begins with https:// or http://",
        )
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "microvm")]
    with target.open("wb") as file:
        found = _fetch(opener, url, file, progress, stall_s)
    if found != sha256:
        raise MicroVMError(
            f"{url} is not what it should be: its SHA-256 is {found}, not {sha256}",
            hint="nothing of it was kept; the server, or something on the way, changed the file: "
            "name another server (`--mirror`)",
        )


def _fetch(
    opener: urllib.request.OpenerDirector,
    url: str,
    file: BinaryIO,
    progress: Progress,
    stall_s: float,
) -> str:
    """Write a URL's bytes to a file; return their SHA-256."""
    try:
        reply = opener.open(url, timeout=stall_s)
    except urllib.error.HTTPError as error:
        said = f"the server says {error.code} {_line(str(error.reason))}"
        error.close()
        raise MicroVMError(f"could not download {url}: {said}", hint=_AGAIN) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HostError(
            f"could not download {url}: {_words(error, stall_s)}",
            hint=f"check the network and http_proxy and https_proxy; {_AGAIN}",
        ) from error
    with reply:
        return _copy(_Reply(reply, url, stall_s), file, progress)


def _copy(reply: "_Reply", file: BinaryIO, progress: Progress) -> str:
    digest = hashlib.sha256()
    done = 0
    while block := reply.read():
        file.write(block)
        digest.update(block)
        done += len(block)
        if done > LARGEST:
            raise MicroVMError(f"{reply.url} is not what it should be: it is over {LARGEST} bytes")
        progress(Event(step="download", detail=reply.url, done=done, total=reply.size))
    if reply.size is not None and done < reply.size:
        raise reply.broken(f"the connection ended after {done} of {reply.size} bytes")
    return digest.hexdigest()


class _Reply:
    """The body of an answer; what goes wrong with it is the server's fault, not a disk's."""

    def __init__(self, reply: http.client.HTTPResponse, url: str, stall_s: float) -> None:
        self.url = url
        length = reply.headers.get("Content-Length", "")
        self.size = int(length) if length.isdecimal() else None
        self._reply = reply
        self._stall_s = stall_s
        self._deadline = Deadline(TIMEOUT_S)

    def read(self) -> bytes:
        """Return the next bytes, none at the end."""
        if self._deadline.expired:
            raise self.broken(f"it was not done after {TIMEOUT_S:g} s")
        try:
            return self._reply.read1(1 << 16)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self.broken(_words(error, self._stall_s)) from error

    def broken(self, why: str) -> MicroVMError:
        """Return the error for a download that broke off."""
        return MicroVMError(f"could not download {self.url}: {why}", hint=_AGAIN)


def _words(error: Exception, stall_s: float) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"nothing came for {stall_s:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    if type(reason) is http.client.BadStatusLine:  # not a connection that was closed, a kind of it
        return f"what answers is no web server, it says {_line(str(reason))}"
    return _line(str(reason)) or type(reason).__name__


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
