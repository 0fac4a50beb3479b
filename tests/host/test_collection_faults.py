"""A collection that is killed at any moment leaves whole downloads only, and can be repeated."""

import subprocess
from pathlib import Path

import pytest

from microvm.store import Store

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

LISTS = f"{'1' * 32}-lists"
STATE = f"{LISTS}-state-{'a' * 32}"
FILES = ("InRelease", "Packages.lz4", "partial/x")


def fill(place: Path) -> Store:
    store = Store.open(place)
    (store.packages / "a.deb").write_text("a")
    (store.packages / "b.deb").write_text("b")
    (store.lists / f"{LISTS}.lock").touch()
    for name in (LISTS, STATE):
        for file in FILES:
            path = store.lists / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)
    return store


@pytest.mark.parametrize("call", ["unlink,unlinkat", "rename,renameat,renameat2", "rmdir", "mkdir"])
def test_a_collection_killed_at_each_system_call_leaves_whole_downloads(
    microvm_cli, tmp_path, tool, call
):
    strace = tool("strace")
    killed = 0
    for number in range(1, 60):
        store = fill(tmp_path / str(number))
        collect = microvm_cli.command("--store", str(store.path), "store", "gc", "--all")
        ran = subprocess.run(
            [
                strace, "-o", "/dev/null", "-e", f"trace={call}",
                "-e", f"inject={call}:signal=SIGKILL:when={number}", *collect,
            ],
            capture_output=True, timeout=300, env=microvm_cli.env,
        )  # fmt: skip
        for name in (LISTS, STATE):
            place = store.lists / name
            assert not place.exists() or all((place / file).exists() for file in FILES)
        again = subprocess.run(collect, capture_output=True, timeout=300, env=microvm_cli.env)
        assert again.returncode == 0, again.stderr
        assert [*store.packages.iterdir(), *store.lists.iterdir(), *store.abandoned()] == []
        if ran.returncode == 0:
            break  # fewer calls than that
        killed += 1
    assert killed
