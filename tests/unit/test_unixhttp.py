"""Requests to a VMM's HTTP socket, with peers that answer, refuse, break off and fall silent."""

import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from http_peer import answer, request

from microvm.errors import ApiError, DeadlineExceeded, HostError
from microvm.host import stream, unixhttp
from peer import listening


@contextmanager
def peer(path, *answers):
    """Answer one request a connection; yields the requests as method, target and body."""
    asked = []

    def work(listener):
        for each in answers:
            connection, _ = listener.accept()
            connection.settimeout(10)
            with connection:
                asked.append(request(connection))
                if callable(each):
                    each(connection)
                else:
                    connection.sendall(each)

    with listening(path, work):
        yield asked


def call(path, *arguments, timeout_s=5.0):
    return unixhttp.call(path, *arguments, name="vmm", timeout_s=timeout_s)


def test_a_body_goes_out_and_one_comes_back(tmp_path):
    path = tmp_path / "api.sock"
    with peer(path, answer({"state": "Running"})) as asked:
        assert call(path, "PUT", "/vm", {"a": 1}) == {"state": "Running"}
    assert asked == [("PUT", "/vm", {"a": 1})]


def test_no_content_is_none(tmp_path):
    path = tmp_path / "api.sock"
    with peer(path, answer(status="204 ")) as asked:
        assert call(path, "PUT", "/button") is None
    assert asked == [("PUT", "/button", None)]


def test_an_answer_in_pieces_is_put_together(tmp_path):
    path, whole = tmp_path / "api.sock", answer(list(range(1000)))

    def slowly(connection):
        for start in range(0, len(whole), 1000):
            connection.sendall(whole[start : start + 1000])
            time.sleep(0.01)

    with peer(path, slowly):
        assert call(path, "GET", "/") == list(range(1000))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"fault_message": "not a keyboard"}, "not a keyboard"),
        ({"error": "other"}, "other"),
        (["Error from API", "VM is not running"], "Error from API: VM is not running"),
        ("plain", "plain"),
        (None, "status 400"),
    ],
)
def test_a_refusal_has_the_other_side_s_words(tmp_path, body, words):
    path = tmp_path / "api.sock"
    with (
        peer(path, answer(body, "400 ")),
        pytest.raises(ApiError, match=f"vmm refused PUT /x: .*{words}"),
    ):
        call(path, "PUT", "/x")


def test_a_refusal_in_plain_text_is_shown(tmp_path):
    path = tmp_path / "api.sock"
    text = b"HTTP/1.1 500 \r\nContent-Length: 8\r\n\r\nit broke"
    with peer(path, text), pytest.raises(ApiError, match="it broke"):
        call(path, "GET", "/x")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "closed its control socket"),
        (b"HTTP/1.1 200 \r\nContent-Le", "closed its control socket"),
        (b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}", "closed its control socket"),
        (b"220 ready\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 abc \r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{x", "no JSON"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_an_error(tmp_path, data, words):
    path = tmp_path / "api.sock"
    with peer(path, data), pytest.raises(ApiError, match=words):
        call(path, "GET", "/")


def test_an_endless_answer_is_given_up(tmp_path):
    path = tmp_path / "api.sock"

    def flood(connection):
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            return

    with peer(path, flood), pytest.raises(ApiError, match="more than"):
        call(path, "GET", "/")


def test_a_peer_that_drips_has_no_more_time_than_a_silent_one(tmp_path):
    path = tmp_path / "api.sock"

    def drip(connection):
        try:
            for _ in range(100):
                connection.sendall(b"H")
                time.sleep(0.05)
        except OSError:
            return

    began = time.monotonic()
    with peer(path, drip):
        with pytest.raises(DeadlineExceeded, match="GET /"):
            call(path, "GET", "/", timeout_s=0.3)
        assert time.monotonic() - began < 2


def test_nobody_there_says_where(tmp_path):
    with pytest.raises(ApiError, match=r"nobody listens on .*api\.sock"):
        call(tmp_path / "api.sock", "GET", "/")


def test_a_path_longer_than_an_address_is_reached(tmp_path):
    path = tmp_path / ("d" * 120) / "api.sock"
    path.parent.mkdir()
    with peer(path, answer([])):
        assert call(path, "GET", "/") == []


def test_the_owner_of_a_socket_is_known(tmp_path):
    path = tmp_path / "api.sock"
    assert stream.owner(path) is None
    with stream.listening(path, None):
        assert stream.owner(path) == os.getpid()


@contextmanager
def as_nobody():
    """Root may connect to everything."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_socket_that_we_may_not_ask_is_told_by_its_user():
    """A dead one of another user refuses us as a live one does: nobody knows of a process."""
    with TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as left:
        path = Path(place) / "api.sock"
        left.bind(str(path))
        left.close()
        path.chmod(0)
        Path(place).chmod(0o755)
        with (
            as_nobody(),
            pytest.raises(HostError, match=r"api\.sock is of another user \(\w+\)") as failure,
        ):
            stream.remove_stale(path)
        assert f"rm {path}" in failure.value.hint
        path.chmod(0o600)
        stream.remove_stale(path)
        assert not path.exists()
