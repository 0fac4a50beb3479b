"""HTTP/1.1 over a Unix socket, as cloud-hypervisor and firecracker speak it: one request a
connection, JSON bodies, an answer with its length.

Not `http.client`: its timeout is for each read, so a VMM that trickles would hold up who waits.
"""

import json
import socket
from pathlib import Path
from typing import Any

from microvm.errors import ApiError, DeadlineExceeded
from microvm.host import stream
from microvm.host.process import Deadline

_LARGEST = 1 << 20
"""Bytes of an answer; a peer that sends more is not the one we meant."""
_END = b"\r\n\r\n"


def call(
    path: Path, method: str, target: str, body: object = None, *, name: str, timeout_s: float
) -> Any:
    """Send one request and return the answer's JSON, or None when it has no body.

    `name` is the program that is spoken to, for messages. Raises `ApiError` with the other side's
    words, `DeadlineExceeded`, `HostError` without the right to connect.
    """
    what = f"{method} {target}"
    deadline = Deadline(timeout_s)
    connection = stream.reach(path, name=name, timeout_s=timeout_s)
    with connection:
        _send(connection, _request(method, target, body), deadline, f"{name}: {what}")
        status, answer = _receive(connection, deadline, f"{name}: {what}")
    if not 200 <= status < 300:
        raise ApiError(f"{name} refused {what}: {_words(answer) or f'status {status}'}")
    if not answer:
        return None
    try:
        return json.loads(answer)
    except ValueError as error:
        raise ApiError(f"{name} answered {what} with what is no JSON: {answer[:80]!r}") from error


def _request(method: str, target: str, body: object) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if payload:
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return f"{head}\r\n".encode() + payload


def _send(connection: socket.socket, data: bytes, deadline: Deadline, what: str) -> None:
    connection.settimeout(max(deadline.left(), 0.001))
    try:
        connection.sendall(data)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what} was not taken in time") from error
    except OSError as error:
        raise ApiError(f"{what}: the other side has gone: {error.strerror}") from error


def _receive(connection: socket.socket, deadline: Deadline, what: str) -> tuple[int, bytes]:
    """Return status and body of the answer."""
    data = b""
    while _END not in data:
        data += _more(connection, deadline, what, len(data))
    head, _, rest = data.partition(_END)
    status, length = _parse(head, what)
    while len(rest) < length:
        rest += _more(connection, deadline, what, len(rest))
    return status, rest[:length]


def _more(connection: socket.socket, deadline: Deadline, what: str, have: int) -> bytes:
    if have > _LARGEST:
        raise ApiError(f"{what} was answered with more than {_LARGEST} bytes")
    connection.settimeout(max(deadline.left(), 0.001))
    try:
        data = connection.recv(65536)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what} was not answered in time") from error
    except OSError as error:
        raise ApiError(f"{what}: the other side has gone: {error.strerror}") from error
    if not data:
        raise ApiError(f"{what}: the other side closed its control socket")
    return data


def _parse(head: bytes, what: str) -> tuple[int, int]:
    """Return status and body length (RFC 9112; 204 and 1xx have no body)."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ApiError(f"{what} was answered with what is no HTTP: {first[:80]!r}")
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-length" and value.strip().isdigit():
            return int(words[1]), int(value)
    return int(words[1]), 0


def _words(answer: bytes) -> str:
    """Return what an error says: firecracker has an object, cloud-hypervisor a list or text."""
    try:
        found = json.loads(answer)
    except ValueError:
        return answer.decode(errors="replace").strip()
    if isinstance(found, dict):
        return str(found.get("fault_message") or found.get("error") or found)
    if isinstance(found, list):
        return ": ".join(map(str, found))
    return str(found)
