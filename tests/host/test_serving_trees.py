"""A VMM that serves a guest's trees itself: it sees their owners, and is else who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microvm.launch import mapped
from microvm.store import Store

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make files of others"),
]

OTHER = 5000
LAUNCHER = """
import sys, time
from pathlib import Path
from microvm.launch import starting
from microvm.model.plan import LaunchPlan

plan = LaunchPlan(
    name="box", hypervisor="qemu", process_name="microvm@box", argv=("/bin/sleep", "600"),
    trees=(sys.argv[1],),
)
with starting.vmm(plan, Path.cwd(), console=0, held=()) as running:
    print(running.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def tree(store):
    """A tree as a build leaves it: closed, and everything in it owned by sub-uids."""
    made = store.path / "item/tree"
    (made / "open").mkdir(parents=True)
    (made / "secret").write_text("of 42\n")
    (made / "secret").chmod(0o400)
    (made / "open").chmod(0o1777)
    for path, guest in ((made, 0), (made / "secret", 42), (made / "open", 65534)):
        os.chown(path, store.ids.first_uid + guest, store.ids.first_gid + guest)
    made.chmod(0o700)
    return made


@pytest.fixture
def seen(tree):
    """Run a shell command in the place of the VMM."""

    def run(script, **options):
        argv = mapped.command("vmm", f'["{tree}"]', "box", "/bin/sh", "-c", script)
        done = subprocess.run(
            argv, cwd=tree, capture_output=True, text=True, check=False, **options
        )
        return done.stdout + done.stderr

    return run


def test_the_owners_are_the_guests(seen):
    assert seen("stat -c '%u:%g %a %n' . secret open; cat secret") == (
        "0:0 700 .\n42:42 400 secret\n65534:65534 1777 open\nof 42\n"
    )


def test_nothing_of_the_trees_can_be_changed(seen, tree):
    said = seen(f"touch {tree}/open/new; chmod 777 {tree}/open; rm -f {tree}/secret")
    assert said.count("Read-only file system") == 3
    assert [*(tree / "open").iterdir()] == []


def test_it_keeps_one_capability_alone(seen):
    status = dict(line.split(":\t", 1) for line in seen("cat /proc/self/status").splitlines()[:50])
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {f"{4:016x}"}


def test_files_of_the_invoking_user_are_its_own(seen, tmp_path):
    own = tmp_path / "own"
    own.touch(0o600)
    assert seen(f"echo more >>{own}; echo >{tmp_path}/new; cat {own}") == "more\n"
    made = (tmp_path / "new").stat()
    assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid())


def test_files_of_others_are_open_only_through_its_groups(seen, tmp_path):
    other = tmp_path / "other"
    other.write_text("of a group\n")
    os.chown(other, OTHER, OTHER)
    other.chmod(0o640)
    assert "Permission denied" in seen(f"cat {other}")
    assert seen(f"cat {other}", extra_groups=[OTHER]) == "of a group\n"


def test_a_killed_launcher_takes_it_along(tree, tmp_path):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tree)], cwd=tmp_path, stdout=subprocess.PIPE
    )
    try:
        shown = Path(f"/proc/{int(launcher.stdout.readline())}/cmdline")
        deadline = time.monotonic() + 50
        while not shown.read_bytes().startswith(b"microvm@box\0") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert shown.read_bytes().split(b"\0")[:2] == [b"microvm@box", b"600"]
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.communicate()
    deadline = time.monotonic() + 50
    while shown.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not shown.exists()


def test_a_tree_that_is_missing_is_told(tmp_path, store):
    argv = mapped.command("vmm", f'["{store.path}/gone/tree"]', "", "/bin/true")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"No such file or directory: '{store.path}/gone/tree'" in done.stderr
    assert "Traceback" not in done.stderr
