"""Progress as a person at a terminal and a log file get it."""

import os
import pty
import re
import subprocess
import sys

import pytest

from microvm.model.progress import counted

CODE = """
from microvm.cli import progress
from microvm.model.progress import Event
with progress.shown(progress.Steps()) as report:
    report(Event(step="download", detail="2 packages", done=0, total=2))
    report(Event(step="download", detail="2 packages", done=2, total=2))
    report(Event(step="lock", detail="web: less 1 -> 2", note=True))
    report(Event(step="lock", detail="web: more 1 -> [3]", note=True))
    report(Event(step="base layer"))
    import time; time.sleep(1.3)
"""


def test_a_log_has_a_line_a_step_and_every_note():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "microvm: download: 2 packages",
        "microvm: lock: web: less 1 -> 2",
        "microvm: lock: web: more 1 -> [3]",
        "microvm: base layer",
    ]


def test_a_terminal_keeps_the_notes_and_every_step_counts_its_own_time():
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    assert process.wait(50) == 0
    assert b"microvm: lock: web: less 1 -> 2\r\n" in shown
    assert b"microvm: lock: web: more 1 -> [3]\r\n" in shown
    # Not 0:00:00, and on a busy machine perhaps more than a second.
    assert re.search(rb"0:00:0[1-9]", shown.rpartition(b"base layer")[2])


def test_one_of_a_thing_is_told_as_one():
    assert [counted(number, "package") for number in (0, 1, 2)] == [
        "0 packages", "1 package", "2 packages",
    ]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_work_goes_on_when_nobody_is_there_to_see_it(when, tmp_path):
    ours, theirs = pty.openpty()
    if when == "before":
        os.close(ours)
    ends = "import pathlib; pathlib.Path('done').touch()"
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{CODE}\n{ends}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    if when != "before":
        assert os.read(ours, 1)
        os.close(ours)
    process.wait(30)  # its status is Python's, which also lets go of standard error at its end
    assert (tmp_path / "done").exists()
