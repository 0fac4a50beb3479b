"""What a collection takes from a store, what it keeps, and what it is measured by."""

import os
import threading
import time
from pathlib import Path

import pytest

from microvm.errors import HostError, StateError
from microvm.host import usage
from microvm.store import Store, downloads, item_name

DAY_S = 86400
LONG_AGO = downloads.KEPT_DAYS + 1


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def aged(path, days):
    past = time.time() - days * DAY_S
    os.utime(path, (past, past))
    return path


def package(store, digest, days):
    path = store.packages / f"{digest}.deb"
    path.write_bytes(b"x" * 8192)
    return aged(path, days)


def lists(store, name, days):
    path = store.lists / name
    path.mkdir()
    (path / "InRelease").write_bytes(b"x" * 8192)
    path.with_name(f"{name.partition('-state-')[0]}.lock").touch()
    return aged(path, days)


def item(store, *digests, root=None):
    def make(directory):
        downloads.write_packages(directory, digests)

    name = item_name("packages", digests)
    store.add(name, make)
    if root:
        store.add_root(root, name)
    return name


def left(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_link_that_cannot_be_made_is_told(store, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="is no link"):
        store.add_root(tmp_path / "file", "item")
    for place in ("x" * 300, "file/link", "nosuch/link"):
        with pytest.raises(HostError, match="could not make the link"):
            store.add_root(tmp_path / place, "item")


def test_packages_that_no_build_used_for_long_go(store):
    package(store, "old", LONG_AGO)
    package(store, "new", LONG_AGO - 2)
    found = store.collect()
    assert left(store.packages) == ["new.deb"]
    assert (found.packages, found.freed) == (1, 8192)


def test_using_a_package_keeps_it(store):
    assert downloads.use(package(store, "old", LONG_AGO))
    assert not downloads.use(store.packages / "gone.deb")
    store.collect()
    assert left(store.packages) == ["old.deb"]


def test_packages_of_items_that_stay_stay(store, tmp_path):
    package(store, "a", LONG_AGO)
    package(store, "b", LONG_AGO)
    kept = item(store, "a", root=tmp_path / "link")
    item(store, "b")
    found = store.collect()
    assert store.names() == [kept]
    assert (found.packages, left(store.packages)) == (1, ["a.deb"])


@pytest.mark.parametrize("days", [0, LONG_AGO])
def test_everything_means_downloads_that_are_needed_too(store, tmp_path, days):
    package(store, "a", days)
    lists(store, f"{'0' * 32}-lists", days)
    kept = item(store, "a", root=tmp_path / "link")
    found = store.collect(everything=True)
    assert (found.packages, found.lists, store.names()) == (1, 1, [kept])
    assert left(store.packages) == left(store.lists) == []


def test_package_lists_go_one_by_one_and_their_lock_with_the_last(store):
    one, two = ("1" * 32 + "-lists", "2" * 32 + "-lists")
    lists(store, one, LONG_AGO)
    lists(store, f"{one}-state-{'a' * 32}", LONG_AGO)
    lists(store, two, LONG_AGO)
    lists(store, f"{two}-state-{'a' * 32}", 1)
    assert store.collect().lists == 3
    assert left(store.lists) == [f"{two}-state-{'a' * 32}", f"{two}.lock"]


def test_half_a_package_list_goes_at_once(store):
    whole = f"{'1' * 32}-lists"
    lists(store, whole, 0)
    lists(store, f"{whole}-half", 0)
    assert store.collect().lists == 1
    assert left(store.lists) == [whole, f"{whole}.lock"]


def test_a_dry_run_tells_the_same_and_changes_nothing(store, tmp_path):
    package(store, "old", LONG_AGO)
    lists(store, f"{'1' * 32}-lists", LONG_AGO)
    item(store, "gone", root=tmp_path / "link")
    (tmp_path / "link").unlink()
    before = [left(path) for path in (store.path, store.packages, store.lists, store.roots)]
    told = store.collect(dry_run=True)
    assert [left(p) for p in (store.path, store.packages, store.lists, store.roots)] == before
    assert store.collect() == told
    assert (told.packages, told.lists, len(told.items)) == (1, 1, 1)


def test_a_collection_waits_for_builds(store):
    package(store, "old", LONG_AGO)
    collector = threading.Thread(target=store.collect)
    with store.building():
        collector.start()
        collector.join(0.3)
        assert collector.is_alive()
        assert left(store.packages) == ["old.deb"]
    collector.join(50)
    assert not collector.is_alive()
    assert left(store.packages) == []


def test_a_hard_link_elsewhere_keeps_its_bytes(tmp_path):
    inside = tmp_path / "tree"
    (inside / "deep").mkdir(parents=True)
    own, shared = inside / "own", inside / "shared"
    for path in (own, shared):
        path.write_bytes(b"x" * 8192)
    directories = sum(path.stat().st_blocks * 512 for path in (inside, inside / "deep"))
    os.link(own, inside / "deep/own-too")
    assert usage.freed([inside]) == directories + 2 * 8192
    os.link(shared, tmp_path / "elsewhere")
    assert usage.freed([inside]) == directories + 8192
    assert usage.freed([inside, tmp_path / "elsewhere"]) == directories + 2 * 8192


def test_what_vanishes_while_it_is_measured_takes_nothing(tmp_path):
    assert usage.freed([tmp_path / "gone", Path("/proc/self/nosuch")]) == 0


def test_the_contents_are_told_with_their_sizes(store):
    package(store, "a", 0)
    lists(store, f"{'1' * 32}-lists", 0)
    name = item(store, "a")
    found = store.contents()
    assert [*found.items] == [name]
    assert found.items[name] >= 4096
    assert (found.packages.count, found.packages.bytes) == (1, 8192)
    assert (found.lists.count, found.abandoned.count) == (1, 0)
    assert found.lists.bytes >= 8192
