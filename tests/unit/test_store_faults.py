"""A store removes what killed builds left, and nothing that somebody still makes or needs."""

import shutil
import subprocess
import sys

import pytest

from microvm.store import Store, item_name

ITEM = item_name("thing", 1)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def in_another_process(store, body):
    """Start a process that has the store open and prints a line when it has come to a point."""
    code = f"""
import sys
from pathlib import Path
from microvm.store import Store
store = Store.open(Path({str(store.path)!r}))
def arrived():
    print("there", flush=True)
    sys.stdin.read()
{body}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"there\n"
    return process


def test_a_build_clears_away_what_a_killed_one_left_and_not_what_one_makes(store):
    making = f"store.add({ITEM!r}, lambda out: ((out / 'f').write_text('x'), arrived()))"
    process = in_another_process(store, making)
    store.clear()
    with store.building():
        assert len(list((store.path / ".tmp").iterdir())) == 1
        assert len(list((store.path / ".locks").iterdir())) == 2
    process.kill()
    process.communicate()
    assert len(store.abandoned()) == 1
    with store.building():
        assert list((store.path / ".tmp").iterdir()) == []
        assert [path.name for path in (store.path / ".locks").iterdir()] == ["collect"]
    assert store.names() == []


def test_what_goes_wrong_first_is_told_also_when_the_rest_can_not_be_removed(store):
    def make(out):
        shutil.rmtree(out)
        out.write_text("in the way")
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        store.add(ITEM, make)
    store.clear()
    assert list((store.path / ".tmp").iterdir()) == []


def test_what_refers_goes_before_what_it_refers_to(store):
    names = [item_name("thing", number) for number in range(6)]

    def make(number):
        def write(out):
            later = names[number + 1 :]
            (out / "references").write_text("".join(f"{name}\n" for name in later))

        return write

    for number in reversed(range(6)):
        store.add(names[number], make(number))
    assert store.collect(dry_run=True).items == tuple(names)
    assert store.collect().items == tuple(names)
    assert store.names() == []


def test_a_damaged_item_package_or_reference_is_found(store):
    from microvm.store.collect import write_checksums

    def make(out):
        (out / "image").write_text("right")
        write_checksums(out, "image")
        (out / "references").write_text(f"{item_name('gone', 1)}\n")

    store.add(ITEM, make)
    (store.path / ITEM / "image").write_text("wrong")
    (store.packages / f"{'0' * 64}.deb").write_text("no package")
    problems = "\n".join(store.verify().problems)
    assert f"{ITEM}/image is not what was built" in problems
    assert f"{ITEM} refers to" in problems
    assert "not what was downloaded" in problems


def test_the_collector_waits_for_a_build_and_says_so(store):
    process = in_another_process(store, "with store.building():\n    arrived()")
    told = []

    def progress(event):
        told.append(event.detail)
        process.communicate()

    store.collect(progress=progress)
    assert told == ["for builds that use this store"]
