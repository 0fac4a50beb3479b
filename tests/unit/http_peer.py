"""The server's half of HTTP/1.1, as VMMs speak it, for peers in tests."""

import json


def request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(4096)
    method, target, version = lines[0].split()
    assert version == "HTTP/1.1"
    return method, target, json.loads(body) if body else None


def answer(body=None, status="200 "):
    raw = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n" if raw else ""
    return (
        f"HTTP/1.1 {status}\r\nServer: VMM\r\nConnection: keep-alive\r\n{length}\r\n".encode() + raw
    )
