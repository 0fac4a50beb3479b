"""Files that are there whole or not at all, also when several processes are at it or one died."""

import hashlib
import os
import subprocess
import sys
import time

import pytest

from microvm.errors import HostError, StateError
from microvm.host import files


def test_what_a_killed_writer_left_is_used_up_by_the_next(tmp_path):
    target = tmp_path / "file"
    code = f"""
import os, signal
from pathlib import Path
from microvm.host import files
def dies():
    os.kill(os.getpid(), signal.SIGKILL)
files.write_atomic(Path({str(target)!r}), dies)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    files.write_atomic(target, "new", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file"
    files.write_atomic(target, b"old")

    def fails():
        raise OSError(28, os.strerror(28))

    with pytest.raises(HostError, match=r"file: No space left") as caught:
        files.write_atomic(target, fails)
    assert "make room" in (caught.value.hint or "")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.timeout(300)
def test_many_writers_at_once_lose_no_change(tmp_path):
    target = tmp_path / "file"
    target.write_text("0")
    code = f"""
from pathlib import Path
from microvm.host import files
path = Path({str(target)!r})
for _ in range(50):
    files.write_atomic(path, lambda: str(int(path.read_text()) + 1))
    files.replace_link(path.with_name("link"), path)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert target.read_text() == "200"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_link_replaces_what_a_killed_process_left(tmp_path):
    link = tmp_path / "link"
    files.replace_link(link, tmp_path / "one")
    name = hashlib.sha256(b"link").hexdigest()[:16]
    (tmp_path / f".microvm-new-{name}.link").symlink_to("nowhere")
    files.replace_link(link, tmp_path / "two")
    assert link.readlink() == tmp_path / "two"
    assert list(tmp_path.iterdir()) == [link]


def test_a_lock_is_waited_for_with_a_word_or_refused(tmp_path):
    path, told = tmp_path / "lock", []
    code = f"""
import fcntl, sys
file = open({str(path)!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    refused = pytest.raises(StateError, match="try it: another process is at it")
    with refused, files.lock(path, wait=False, doing="try it"):
        pass

    def waiting():
        told.append(time.monotonic())
        holder.communicate()

    with files.lock(path, waiting=waiting, passing=True):
        assert len(told) == 1
    assert not path.exists()


def test_a_lock_that_can_not_be_opened_says_what_for(tmp_path):
    refused = pytest.raises(HostError, match="could not use it: No such file or directory")
    with refused, files.lock(tmp_path / "no/lock", doing="use it"):
        pass
