"""A build that is killed, interrupted or starved of space leaves the store and the host whole.

Each test drives the real command line as a process, in a store of its own.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from place import Place, served

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(2400)]

PROMPT_S = 30.0
"""2 s are promised, which a busy machine may not keep; each phase here would last for minutes."""
ENDLESS = "98765"
"""Seconds that stand-ins for programs sleep: by this number the phase that was reached is seen."""
CALLS = ["rename,renameat,renameat2", "fsync,fdatasync,syncfs", "mkdir,mkdirat"]


def killed_at_random(place: Place, times: int) -> None:
    place.declare("how long")
    began = time.monotonic()
    assert place.build().returncode == 0
    length_s = time.monotonic() - began
    generator = random.Random(1)
    for number in range(times):
        place.declare(f"killed {number}")
        process = place.start()
        time.sleep(generator.uniform(0, length_s))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert place.processes() == [], f"left after kill {number}"
        if number % 5 == 0:
            place.verify()
        again = place.build()
        assert again.returncode == 0, again.stderr
        assert place.left() == [], f"left after the build that followed kill {number}"
    place.verify()


def test_a_build_killed_at_any_moment_can_be_repeated_and_nothing_is_left(place):
    killed_at_random(place, 50)


def test_an_ordinary_users_build_killed_at_any_moment_can_be_repeated(user_cli, known):
    place = Place(user_cli, user_cli.home / "project", known.mirror)
    shutil.copyfile(known.project / "microvm.lock", place.project / "microvm.lock")
    user_cli.own(place.project)
    killed_at_random(place, 10)


def injected(place: Place, tool, call: str, what: str, *words: str):
    """Run a command of ours; `what` befalls one system call of its own process."""
    return subprocess.run(
        [
            tool("strace"), "-o", "/dev/null", "-e", f"trace={call}", "-e",
            f"inject={call}:{what}", *place.cli.command(*words),
        ],
        capture_output=True, text=True, timeout=300, env=place.cli.env, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_build_killed_at_each_system_call_of_our_own_process_can_be_repeated(place, call, tool):
    for number in range(1, 60):
        place.declare(f"{call} {number}")
        what = f"signal=SIGKILL:when={number}"
        killed = injected(place, tool, call, what, "build", str(place.project))
        if killed.returncode == 0:
            break  # fewer calls than that
        place.verify()
        again = place.build()
        assert again.returncode == 0, again.stderr
        assert place.left() == []
    else:
        pytest.fail("the build makes more calls than the test tries")
    assert number > 2


@pytest.mark.parametrize("call", [*CALLS, "symlink,symlinkat", "flock"])
def test_a_system_call_that_fails_is_told_and_the_next_build_works(place, call, tool):
    """Without room, as it were: each call of a kind fails in turn."""
    told, well = 0, 0
    error = "EIO" if "sync" in call else "ENOLCK" if call == "flock" else "ENOSPC"
    for number in range(1, 60):
        place.declare(f"failing {call} {number}")
        what = f"error={error}:when={number}"
        ran = injected(place, tool, call, what, "build", str(place.project))
        assert "Traceback" not in ran.stderr, ran.stderr
        assert ran.returncode in (0, 4), ran.stderr
        told += ran.returncode == 4
        well = well + 1 if ran.returncode == 0 else 0
        again = place.build()
        assert again.returncode == 0, again.stderr
        assert place.left() == []
        if well == 4:  # some failures cost nothing: the directory was there
            break
    assert told > 0 or "mkdir" in call or "symlink" in call


@pytest.mark.parametrize("call", ["rename,renameat,renameat2", "rmdir,unlinkat", "flock"])
def test_a_collection_killed_at_each_system_call_can_be_repeated(place, call, tool):
    place.declare("kept")
    assert place.build("--out-link", str(place.project / "microvm.lock.link")).returncode == 0
    link = place.project / "microvm.lock.link"
    try:
        for number in range(1, 12):
            place.declare(f"garbage {call} {number}")
            assert place.build().returncode == 0
            injected(place, tool, call, f"signal=SIGKILL:when={number}", "store", "gc")
            place.verify()
            assert (link / "bin/microvm-run").exists()
        collected = place.cli("store", "gc")
        assert collected.returncode == 0, collected.stderr
    finally:
        link.unlink()
    assert place.left() == []
    assert place.build().returncode == 0


@contextmanager
def stand_in(name: str, sleeps_on: str):
    """Yield a PATH with a program that sleeps for ever when its arguments contain a word.

    In a place that builds can enter, whoever their user is.
    """
    real = shutil.which(name)
    if real is None:
        pytest.skip(f"{name} is not installed")
    directory = Path(tempfile.mkdtemp(prefix="microvm-test-", dir="/var/tmp"))
    try:
        directory.chmod(0o755)
        program = directory / name
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *{sleeps_on}*) exec sleep {ENDLESS};; esac\n'
            f'exec {real} "$@"\n'
        )
        program.chmod(0o755)
        yield f"{directory}:{os.environ['PATH']}"
    finally:
        shutil.rmtree(directory)


def asleep(place: Place) -> bool:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        # The guest's own commands have another environment.
        if ENDLESS.encode() in words and (
            os.fsencode(place.store) in environment or b"SYSTEMD_OFFLINE" in environment
        ):
            return True
    return False


def interrupted(place: Place, number: signal.Signals, reached, env=None) -> None:
    """Start a build, signal it when it has reached a phase, and see that all ends at once."""
    command = place.cli.command("build", str(place.project))
    process = subprocess.Popen(
        command, env={**place.cli.env, **(env or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    if number == signal.SIGINT:  # a terminal sends it to all that run in the foreground
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=120)[0].decode()
    took = time.monotonic() - began
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert place.left() == []
    assert took < PROMPT_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_each_phase_at_once_and_the_same_command_then_goes_on(
    number, known, make_place
):
    with served(known) as mirror:
        place = make_place(packages=False, lock=False, mirror=mirror.url)
        mirror.fault = lambda path: "stall" if "InRelease" in path else "serve"
        interrupted(place, number, mirror.stalled.is_set)
        mirror.stalled.clear()
        mirror.fault = lambda path: "stall" if "perl-base" in path else "serve"
        interrupted(place, number, mirror.stalled.is_set)
        mirror.fault = lambda path: "serve"
        for program, word in (("dpkg-deb", "--fsys-tarfile"), ("mkfs.erofs", "-zlz4")):
            with stand_in(program, word) as path:
                interrupted(place, number, lambda: asleep(place), {"PATH": path})
        built = place.build()
        assert built.returncode == 0, built.stderr
    place.declare("endless", f"run = ['sleep {ENDLESS}']")
    interrupted(place, number, lambda: asleep(place))
    place.declare("over")
    assert place.build().returncode == 0
    place.verify()


def test_of_two_builds_at_once_the_second_waits_says_so_and_takes_the_firsts_result(place):
    place.declare("together", "run = ['sleep 5']")
    first = place.start(text=True)
    line = first.stdout.readline()
    while "run commands" not in line:
        assert line, "the first build ended early"
        line = first.stdout.readline()
    second = place.build()
    said = first.communicate(timeout=300)[0]
    assert first.returncode == 0, said
    assert second.returncode == 0, second.stderr
    assert "wait: for another build" in second.stderr
    assert "run commands" not in second.stderr
    assert second.stdout == said.splitlines()[-1] + "\n"
    assert place.left() == []


def test_two_resolutions_at_once_are_one_after_the_other(known, make_place):
    with served(known) as mirror:
        place = make_place(lock=False, mirror=mirror.url)
        mirror.fault = lambda path: "stall" if "InRelease" in path else "serve"
        first = place.start()
        assert mirror.stalled.wait(120)
        second = subprocess.Popen(
            place.cli.command("lock", str(place.project)), env=place.cli.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert "wait: for another build that fetches the lists" in second.stdout.readline()
        mirror.fault = lambda path: "serve"
        first.kill()  # with what it has started: nothing keeps the second one waiting
        first.communicate()
        said = second.communicate(timeout=300)[0]
        assert second.returncode == 0, said
        assert place.processes() == []


@pytest.fixture
def disk(tmp_path, tool):
    """A small file system, and how to make it larger."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    mount, where = tool("mount"), tmp_path / "disk"
    where.mkdir()
    subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=True)
    try:
        yield (
            where,
            lambda size: subprocess.run([mount, "-o", f"remount,size={size}m", where], check=True),
        )
    finally:
        subprocess.run([tool("umount"), "-l", where], check=True)


def test_a_full_disk_is_told_at_every_stage_and_costs_no_more_than_the_room(
    disk, known, make_place
):
    where, resize = disk
    try:
        os.setxattr(where, "user.try", b"")
    except OSError:
        pytest.skip("tmpfs has no user attributes before Linux 6.6")
    with served(known) as mirror:
        place = make_place(packages=False, lock=False, mirror=mirror.url)
        place.store = place.cli.store = where / place.store.name
        place.cli.env = {**place.cli.env, "MICROVM_STORE": str(place.store)}
        sizes = [1, 80, 120, 160, 200, 260]
        for size in sizes:
            resize(size)
            ran = place.build()
            assert ran.returncode == 4, f"{size} MiB: {ran.stderr}"
            assert "space left" in ran.stderr
            assert "microvm store gc" in ran.stderr
            assert "Traceback" not in ran.stderr
            assert place.left() == []
            place.verify()
        resize(1500)
        built = place.build()
        assert built.returncode == 0, built.stderr


def test_a_full_disk_for_the_state_is_told_and_leaves_no_half_volume(disk, place):
    where, resize = disk
    volume = "[[microvms.small.volumes]]\nimage = 'd.img'\nsize = 64\nmount_point = '/d'"
    place.declare("state", volume)
    resize(1)
    (where / "fill").write_bytes(b"x" * ((1 << 20) - (48 << 10)))
    state = {"XDG_STATE_HOME": str(where / "state")}
    ran = place.cli("run", str(place.project), "--", "true", extra=state, timeout=300)
    assert ran.returncode == 125
    assert "no room left" in ran.stderr
    left = {path.name for path in where.rglob("small/*")}
    assert left - {"host-id"} == {"current", "lock"}  # an id where the host has none
