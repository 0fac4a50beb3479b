"""The control protocol of QEMU, with a peer that speaks it, breaks it or falls silent."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from microvm.errors import ApiError, DeadlineExceeded
from microvm.host.qmp import Qmp
from peer import PATIENCE_S, listening

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}}
EVENT = {"event": "RESET", "data": {"guest": True}, "timestamp": {"seconds": 1, "microseconds": 2}}


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection):
        self.connection = connection
        self.received = connection.makefile("rb")
        self.asked = []

    def send(self, *messages):
        for message in messages:
            raw = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n"
            self.connection.sendall(raw)

    def take(self):
        request = json.loads(self.received.readline())
        self.asked.append(request)
        return request

    def answer(self, value=None, *before):
        number = self.take()["id"]
        self.send(*before, {"return": {} if value is None else value, "id": number})

    def greet(self):
        self.send(GREETING)
        self.answer()

    def wait_for_end(self):
        self.received.read()


@pytest.fixture
def qemu(tmp_path):
    """Serve one connection by a function, in a thread; whatever goes wrong there fails the test."""

    @contextmanager
    def serve(behaviour):
        def work(listener):
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE_S)
            peer = Peer(connection)
            with connection, peer.received:
                behaviour(peer)

        path = tmp_path / "qmp.sock"
        with listening(path, work):
            yield path

    return serve


@contextmanager
def connected(path, **options):
    qmp = Qmp(path, **options)
    try:
        yield qmp
    finally:
        qmp.close()


def test_a_command_and_its_answer(qemu):
    def behaviour(peer):
        peer.greet()
        peer.answer({"status": "running"})
        peer.answer({})
        assert [one["execute"] for one in peer.asked] == [
            "qmp_capabilities", "query-status", "balloon",
        ]  # fmt: skip
        assert "arguments" not in peer.asked[1]
        assert peer.asked[2]["arguments"] == {"value": 1 << 30}

    with qemu(behaviour) as path, connected(path) as qmp:
        assert qmp.call("query-status") == {"status": "running"}
        assert qmp.call("balloon", value=1 << 30) == {}


def test_an_error_is_told_in_qemus_words_and_the_connection_goes_on(qemu):
    def behaviour(peer):
        peer.greet()
        number = peer.take()["id"]
        peer.send({"error": {"class": "GenericError", "desc": "no balloon here"}, "id": number})
        peer.answer(5)

    with qemu(behaviour) as path, connected(path) as qmp:
        with pytest.raises(ApiError, match="QEMU refused balloon: no balloon here"):
            qmp.call("balloon", value=1)
        assert qmp.call("query-status") == 5


def test_events_between_answers_are_kept_in_order(qemu):
    later = {"event": "SHUTDOWN"}

    def behaviour(peer):
        peer.send(GREETING, EVENT)
        peer.answer()
        peer.answer(1, later)
        peer.answer(2)
        peer.wait_for_end()

    with qemu(behaviour) as path, connected(path) as qmp:
        assert qmp.call("query-status") == 1
        assert qmp.call("query-status") == 2
        assert qmp.drain() == [EVENT, later]
        assert qmp.drain() == []


def test_an_event_that_comes_unasked_is_seen_without_waiting(qemu):
    def behaviour(peer):
        peer.greet()
        peer.send(EVENT, EVENT)
        peer.take()
        peer.send({"event": "STOP"})

    with qemu(behaviour) as path, connected(path) as qmp:
        deadline = time.monotonic() + 45
        found = []
        while len(found) < 2 and time.monotonic() < deadline:
            found += qmp.drain()
        assert found == [EVENT, EVENT]
        with pytest.raises(ApiError, match="closed"):
            qmp.call("quit")
        assert qmp.drain() == [{"event": "STOP"}]


def test_a_message_in_pieces_is_one_message(qemu):
    def behaviour(peer):
        for byte in json.dumps(GREETING).encode() + b"\n":
            peer.send(bytes([byte]))
        peer.answer()
        peer.answer("x" * 200_000)

    with qemu(behaviour) as path, connected(path) as qmp:
        assert qmp.call("query-status") == "x" * 200_000


def test_the_late_answer_to_a_call_given_up_is_not_taken_for_the_next_one(qemu):
    given_up = threading.Event()

    def behaviour(peer):
        peer.greet()
        first = peer.take()["id"]
        given_up.wait(45)
        peer.send({"return": "late", "id": first})
        peer.answer("in time")

    with qemu(behaviour) as path, connected(path, timeout_s=2) as qmp:
        with pytest.raises(DeadlineExceeded, match="did not answer in time"):
            qmp.call("query-status")
        given_up.set()
        assert qmp.call("query-name") == "in time"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "closed its control socket"),
        (b'{"return"', "closed its control socket"),
        (b"HTTP/1.1 400 Bad Request\r\n", "no JSON"),
        (b"\xff\xfe\n", "no JSON"),
        (b"\n", "no JSON"),
        (b"[1, 2]\n", "no message"),
        (b"7\n", "no message"),
        (b'{"error": "odd"}\n', "refused query-status: odd"),
        (b'{"error": {}}\n', "refused query-status"),
    ],
)
def test_a_peer_that_breaks_off_or_talks_nonsense_is_an_api_error(sent, said, qemu):
    def behaviour(peer):
        peer.greet()
        peer.take()
        peer.send(sent)

    with qemu(behaviour) as path, connected(path) as qmp:
        with pytest.raises(ApiError, match=said):
            qmp.call("query-status")
        assert qmp.drain() == []


@pytest.mark.parametrize(
    ("sent", "said"), [(b"nonsense\n", "no JSON"), (b"{}\n", "does not greet"), (b"", "closed")]
)
def test_a_peer_that_is_not_qemu_is_an_api_error(sent, said, qemu):
    with qemu(lambda peer: peer.send(sent)) as path, pytest.raises(ApiError, match=said):
        Qmp(path)


def test_a_greeting_that_never_comes_ends_in_time(qemu):
    with qemu(lambda peer: peer.wait_for_end()) as path:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            Qmp(path, timeout_s=0.2)
        assert time.monotonic() - began < 15


def test_a_peer_that_trickles_does_not_stretch_the_time(qemu):
    def behaviour(peer):
        peer.greet()
        peer.take()
        try:
            for _ in range(1000):
                peer.send(EVENT)
                time.sleep(0.02)
        except OSError:
            return

    with qemu(behaviour) as path, connected(path, timeout_s=2) as qmp:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            qmp.call("query-status")
        assert time.monotonic() - began < 15


def test_nobody_there_is_an_api_error(tmp_path):
    with pytest.raises(ApiError, match="nobody listens"):
        Qmp(tmp_path / "qmp.sock")


def test_a_socket_with_a_long_path_is_reached(tmp_path, monkeypatch):
    place = tmp_path / ("d" * 120)
    place.mkdir()
    monkeypatch.chdir(place)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind("q")
        listener.listen(1)
        with pytest.raises(DeadlineExceeded):
            Qmp(place / "q", timeout_s=0.1)
