"""What is made and kept in a state directory around a start, without a VMM."""

from dataclasses import replace

import pytest

from microvm.errors import HostError
from microvm.host import stream
from microvm.launch import helpers, logs, starting
from microvm.model.declaration import MicroVM
from microvm.model.devices import Share
from planned import facts, plan

DEEP = "deep/dir/x.sock"


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor", "firecracker", "crosvm"])
def test_the_directory_of_a_socket_is_made(kind, tmp_path):
    planned = plan(MicroVM(hypervisor=kind, socket=DEEP), facts(kind))
    assert planned.control == DEEP
    for _ in range(2):  # the second time it is there
        assert starting.prepare(planned, tmp_path, reset_root=False) == []
        with stream.listening(tmp_path / DEEP, None):
            pass


def test_the_directory_of_a_helpers_socket_is_made_by_whoever_starts_it(tmp_path):
    share = Share(tag="src", source="src", mount_point="/src", socket="x/y.sock")
    planned = plan(MicroVM(shares=(share,)), facts("qemu"))
    program = tmp_path / "virtiofsd"
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    program.chmod(0o755)
    (helper,) = planned.helpers
    planned = replace(planned, helpers=(replace(helper, argv=(str(program),)),))
    with helpers.running(planned, tmp_path):
        assert (tmp_path / "x/y.sock").is_socket()
    assert not (tmp_path / "x/y.sock").exists()


def test_helpers_of_an_earlier_run_are_not_heard(tmp_path):
    """Neither one that is declared no more, nor one that does not get to start this time."""
    share = Share(tag="src", source="src", mount_point="/src")
    planned = plan(MicroVM(shares=(share,)), facts("qemu"))
    (helper,) = planned.helpers
    gone = replace(planned, helpers=(replace(helper, argv=("/nowhere",)),))
    for log in (tmp_path / "virtiofsd-before.log", logs.of_helper(helper, tmp_path)):
        log.write_text("of yesterday\n")
    with pytest.raises(HostError), helpers.running(gone, tmp_path):
        pass
    assert "yesterday" not in starting.last_words(planned, tmp_path)


def test_no_directory_is_made_elsewhere(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    for name in (f"{tmp_path}/other/x.sock", "../other/x.sock", "x.sock"):
        stream.make_place(state, name)
    assert not (tmp_path / "other").exists()
    assert list(state.iterdir()) == []


def test_what_is_in_the_way_of_a_sockets_directory_is_told(tmp_path):
    (tmp_path / "deep").touch()
    with pytest.raises(HostError, match=f"make the directory of the socket {DEEP}: .*deep") as told:
        stream.make_place(tmp_path, DEEP)
    assert told.value.hint == "a directory is needed there"


@pytest.fixture
def small(monkeypatch):
    """A limit that a test reaches soon."""
    monkeypatch.setattr(logs, "LIMIT", 256 << 10)


MUCH = b"much\n" * (100 << 10)


@pytest.mark.usefixtures("small")
def test_every_log_of_a_machine_starts_anew_before_it_fills_the_disk(tmp_path):
    share = Share(tag="src", source="src", mount_point="/src")
    served = plan(MicroVM(hypervisor="qemu", shares=(share,)), facts("qemu"))
    own = plan(MicroVM(hypervisor="firecracker"), facts("firecracker"))
    names = {path.name for one in (served, own) for path in logs.of(one, tmp_path)}
    assert names == {"vmm.log", "firecracker.log", "virtiofsd-src.log"}
    logs.bound(logs.of(served, tmp_path))  # none of them is there yet
    for name in names:
        (tmp_path / name).write_bytes(MUCH)
    (tmp_path / "notes.log").write_bytes(MUCH)
    for one in (served, own):
        logs.bound(logs.of(one, tmp_path))
    assert [(tmp_path / name).stat().st_size for name in names] == [0, 0, 0]
    assert (tmp_path / "notes.log").read_bytes() == MUCH, "nobody's log"


@pytest.mark.usefixtures("small")
def test_a_program_that_does_not_append_writes_on_and_is_heard(tmp_path):
    planned = plan(MicroVM(hypervisor="firecracker"), facts("firecracker"))
    log = tmp_path / "firecracker.log"
    with log.open("wb", buffering=0) as written:
        written.write(MUCH)
        logs.bound(logs.of(planned, tmp_path))
        assert log.stat().st_blocks == 0
        written.write(b"no such kernel\n")
        logs.bound(logs.of(planned, tmp_path))
    assert log.stat().st_size > len(MUCH)
    assert starting.last_words(planned, tmp_path) == "\nfirecracker.log:\n  no such kernel"
