"""Fixtures for tests of bad input and bad luck: places where something can go wrong."""

import json
import secrets
import shutil
from collections.abc import Iterator

import pytest

from command_line import CommandLine
from mirror import Mirror
from place import Place, served


@pytest.fixture(scope="session")
def known(microvm_cli, guest_store, mirror, tmp_path_factory) -> Place:
    """A project that the shared store has built: its lock speaks of packages that are kept."""
    place = Place(microvm_cli, tmp_path_factory.mktemp("known") / "project", mirror)
    place.declare("known")
    built = place.build()
    assert built.returncode == 0, built.stderr
    return place


@pytest.fixture(scope="session")
def make_place(known, tmp_path_factory):
    """Make a place whose lock is there; the packages too, unless said otherwise."""

    def make(*, packages: bool = True, lock: bool = True, mirror: str | None = None) -> Place:
        home = tmp_path_factory.mktemp("place")
        store = home / f"store-{secrets.token_hex(4)}"
        (store / ".packages").mkdir(parents=True)
        place = Place(CommandLine(store, home), home / "project", mirror or known.mirror)
        place.declare("first")
        wanted = json.loads((known.project / "microvm.lock").read_text())
        if lock:
            shutil.copyfile(known.project / "microvm.lock", place.project / "microvm.lock")
        for package in wanted["packages"].values() if packages else ():
            name = f"{package['sha256']}.deb"
            shutil.copyfile(known.store / ".packages" / name, store / ".packages" / name)
        return place

    return make


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    """A place whose base layer is built: what changes from then on is built in a second."""
    made = make_place()
    built = made.build()
    assert built.returncode == 0, built.stderr
    return made


@pytest.fixture
def faulty(known) -> Iterator[Mirror]:
    """A mirror of this host with the signed lists and the packages of the known project."""
    with served(known) as running:
        yield running
