"""What is made and kept in a state directory around a start, without a VMM."""

from dataclasses import replace

import pytest

from microvm.errors import HostError
from microvm.host import stream
from microvm.launch import helpers, starting
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
