"""The guest's job agent, run for real with perl over a socket pair."""

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from importlib import resources

import pytest

from microvm.launch.job import LINE_WINDOW, STREAM_WINDOW, JobStream, frame

AGENT = resources.files("microvm.guests.debian") / "data/job-agent"

pytestmark = pytest.mark.skipif(shutil.which("perl") is None, reason="perl is missing")


class Job:
    """An agent that runs one command, and what came of it."""

    def __init__(
        self, *command: str, directory: str = "/", user: str = "", window=STREAM_WINDOW
    ) -> None:
        ours, theirs = socket.socketpair()
        self.link = ours
        self.written = {1: bytearray(), 2: bytearray()}
        self.stream = JobStream(
            command, directory, user, write=lambda number, data: self.written[number].extend(data),
            window=window,
        )  # fmt: skip
        with theirs:
            self.agent = subprocess.Popen(
                ["perl", os.fspath(AGENT), f"fd:{theirs.fileno()}"], pass_fds=[theirs.fileno()]
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exception: object) -> None:
        self.agent.kill()
        self.agent.wait()
        self.link.close()

    def started(self) -> "Job":
        """Wait for the agent's hello: input before it would have no job to go to."""
        self.until(lambda: self.stream.started)
        return self

    def step(self, limit_s: float = 0.2) -> None:
        writers = [self.link] if self.stream.outgoing else []
        readable, writable, _ = select.select([self.link], writers, [], limit_s)
        if writable:
            count = self.link.send(self.stream.outgoing[:65536])
            del self.stream.outgoing[:count]
        if readable:
            self.stream.receive(self.link.recv(65536))

    def until(self, done, limit_s: float = 45) -> None:
        end = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < end, bytes(self.written[2])
            self.step()

    def finish(self) -> int | None:
        self.until(lambda: self.stream.ended)
        return self.stream.status


def run(*command: str, stdin: bytes = b"", **options: str) -> tuple[int | None, bytes, bytes]:
    with Job(*command, **options) as job:
        job.started()
        for start in range(0, len(stdin), 32768):
            job.stream.input(stdin[start : start + 32768])
        job.stream.input(b"")
        status = job.finish()
        return status, bytes(job.written[1]), bytes(job.written[2])


def test_output_and_error_arrive_separately_and_byte_exact():
    every = bytes(range(256))
    status, out, err = run(
        "perl", "-e", "print map chr, 0..255; print STDERR reverse map chr, 0..255"
    )
    assert (status, out, err) == (0, every, every[::-1])


def test_standard_input_is_passed_with_its_end():
    assert run("cat", stdin=b"one\0two\n") == (0, b"one\0two\n", b"")


def test_a_megabyte_goes_in_and_comes_out_unchanged():
    data = os.urandom(1 << 20)
    assert run("cat", stdin=data) == (0, data, b"")


def test_on_a_serial_line_no_more_input_is_under_way_than_the_guest_has_room_for():
    """Its tty drops the rest: a job that reads late would miss bytes in the middle."""
    data = os.urandom(300000)
    with Job("sh", "-c", "read go; cat", window=LINE_WINDOW) as job:
        job.started().stream.input(b"go\n" + data)
        sent = 0
        while not job.stream.ended:
            assert len(job.stream.outgoing) <= 2 * LINE_WINDOW
            if sent == 0 and len(job.written[1]) == len(data):
                sent = 1
                job.stream.input(b"")
            job.step()
    assert bytes(job.written[1]) == data


def test_bytes_that_come_one_by_one_do_not_fill_the_line_with_headers():
    with Job("cat", window=LINE_WINDOW) as job:
        job.started()
        job.stream.outgoing.clear()
        for _ in range(LINE_WINDOW):
            job.stream.input(b"x")
        assert len(job.stream.outgoing) < 4096
    with Job("cat", window=LINE_WINDOW) as job:
        job.started()
        for number in range(5000):
            job.stream.input(bytes([number % 256]))
            if number % 100 == 0:
                job.step(0)
        job.stream.input(b"")
        assert job.finish() == 0
        assert job.written[1] == bytes(number % 256 for number in range(5000))


def test_a_job_that_never_reads_leaves_the_rest_of_its_input_with_us():
    with Job("sleep", "4", window=LINE_WINDOW) as job:
        job.started().stream.input(b"x" * 400000)
        passed = 0
        end = time.monotonic() + 3  # once the job has ended, the rest is taken and dropped
        while time.monotonic() < end:
            passed += len(job.stream.outgoing)
            assert not job.stream.wants_input
            job.step()
        assert passed < 400000
        assert job.finish() == 0


@pytest.mark.parametrize("kind", ["a", "x"])
def test_a_guest_that_sends_no_number_ends_the_job_and_not_us(kind):
    stream = JobStream(("c",))
    stream.receive(frame("h", b"1") + frame(kind, b"9" * 5000) + frame(kind, b"rubbish"))
    assert stream.ended
    assert "no number" in stream.failure


def test_what_a_terminal_takes_for_its_escape_is_said_twice():
    stream = JobStream(("c",), escape=b"\x01")
    stream.receive(frame("h", b"1"))
    stream.outgoing.clear()
    stream.input(b"a\x01b")
    assert stream.outgoing == b"i\0\0\0\x03a\x01\x01b"
    stream.receive(frame("a", b"3"))
    stream.input(b"y")  # one byte long: the header's length too
    assert stream.outgoing[9:] == b"i\0\0\0\x01\x01y"


def test_output_before_the_end_of_input_is_not_held_back():
    with Job("cat") as job:
        job.started().stream.input(b"first")
        job.until(lambda: job.written[1] == b"first")
        job.stream.input(b"")
        assert job.finish() == 0


def test_a_job_that_never_reads_its_input_ends():
    assert run("true", stdin=b"x" * 300000)[0] == 0


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_the_exit_status_comes_back(status):
    assert run("sh", "-c", f"exit {status}")[0] == status


def test_a_job_killed_by_a_signal_has_128_and_its_number():
    assert run("sh", "-c", "kill -TERM $$")[0] == 128 + signal.SIGTERM


def test_signals_reach_the_job_and_what_it_started():
    with Job("sh", "-c", "echo ready; sleep 600") as job:
        job.until(lambda: bool(job.written[1]))
        job.stream.signal(signal.SIGTERM)
        assert job.finish() == 128 + signal.SIGTERM


@pytest.mark.parametrize("window", [STREAM_WINDOW, LINE_WINDOW])
def test_signals_pass_input_that_the_job_does_not_read(window):
    with Job("sh", "-c", "echo ready; exec sleep 600", window=window) as job:
        job.until(lambda: bool(job.written[1]))
        end = time.monotonic() + 3
        while time.monotonic() < end:
            while job.stream.wants_input:
                job.stream.input(b"x" * 65536)
            job.step()
        job.stream.signal(signal.SIGTERM)
        assert job.finish() == 128 + signal.SIGTERM


def test_a_command_that_is_missing_is_127_and_one_that_cannot_run_126():
    status, _, err = run("no-such-command")
    assert status == 127
    assert b"no-such-command: No such file" in err
    status, _, err = run("/etc/passwd")
    assert status == 126
    assert b"/etc/passwd: Permission denied" in err


def test_a_missing_directory_or_user_is_told_as_a_job_that_cannot_start():
    with Job("true", directory="/no/such/place") as job:
        job.until(lambda: job.stream.ended)
        assert "can't enter /no/such/place" in (job.stream.failure or "")
    with Job("true", user="no-such-user") as job:
        job.until(lambda: job.stream.ended)
        assert job.stream.failure == "there is no user no-such-user"


def test_the_job_has_the_environment_of_a_login_and_nothing_of_the_agent():
    status, out, _ = run("env")
    names = {line.partition("=")[0] for line in out.decode().splitlines()}
    assert status == 0
    assert {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG"} <= names
    assert "PYTEST_CURRENT_TEST" not in names


def test_arguments_arrive_unchanged():
    odd = ["", "two words", "new\nline", "$(id)", "ü"]
    _, out, _ = run("printf", "%s|", *odd)
    assert out.decode() == "".join(f"{word}|" for word in odd)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_job_of_a_user_has_that_user_s_ids_and_home():
    status, out, err = run("sh", "-c", "id -u; id -G; echo $HOME $USER", user="daemon")
    assert (status, out) == (0, b"1\n1\n/usr/sbin daemon\n"), err


def test_the_job_has_no_open_descriptors_of_the_agent():
    _, out, _ = run("sh", "-c", "ls /proc/$$/fd")
    assert out.split() == [b"0", b"1", b"2"]


def test_what_a_job_leaves_behind_does_not_keep_it_from_ending():
    began = time.monotonic()
    status, out, _ = run("sh", "-c", "sleep 600 & echo done")
    assert (status, out) == (0, b"done\n")
    assert time.monotonic() - began < 40


def test_frames_that_arrive_byte_by_byte_are_understood():
    with Job("cat") as job:
        job.until(lambda: job.stream.started)
        raw = bytes(job.stream.outgoing) + frame("i", b"slow") + frame("z")
        job.stream.outgoing.clear()
        for byte in raw:
            job.link.send(bytes([byte]))
        assert job.finish() == 0
        assert job.written[1] == b"slow"


def test_a_reader_that_comes_late_gets_every_byte():
    with Job("perl", "-e", "print 'x' x 700000") as job:
        job.started()
        time.sleep(2.5)  # the job has ended, its output is still in pipe and socket
        assert job.finish() == 0
        assert len(job.written[1]) == 700000


def test_the_agent_stays_until_its_last_word_was_taken():
    with Job("true") as job:
        assert job.finish() == 0
        with pytest.raises(subprocess.TimeoutExpired):
            job.agent.wait(1)
        job.until(lambda: not job.stream.outgoing)
        assert job.agent.wait(30) == 0


def test_the_agent_ends_when_the_host_goes():
    with Job("true") as job:
        assert job.finish() == 0
        job.link.close()
        assert job.agent.wait(30) == 0
