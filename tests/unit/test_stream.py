"""A socket of ours takes nobody's place, and says what keeps it from being there."""

import socket

import pytest

from microvm.errors import HostError, StateError
from microvm.host import stream


def test_a_file_at_its_place_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes"
    path.write_text("mine\n")
    with pytest.raises(HostError, match="notes: Address already in use"):
        stream.listening(path, None).__enter__()
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("mine\n"), lambda path: path.mkdir()]
)
def test_what_is_no_socket_is_never_removed_as_a_stale_one(tmp_path, make):
    path = tmp_path / "notes"
    make(path)
    with pytest.raises(StateError, match="notes: something else is there, which is left as it is"):
        stream.remove_stale(path)
    stream.remove(path)
    assert path.exists()


def test_a_link_at_its_place_keeps_what_it_names(tmp_path):
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "real.sock"))
    (tmp_path / "link.sock").symlink_to("real.sock")
    with pytest.raises(StateError, match="left as it is"):
        stream.remove_stale(tmp_path / "link.sock")
    stream.remove(tmp_path / "link.sock")
    assert (tmp_path / "link.sock").is_socket()


def test_the_socket_of_one_who_died_makes_way(tmp_path):
    for drop in (stream.remove_stale, stream.remove):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "fs.sock"))
        drop(tmp_path / "fs.sock")
        assert not (tmp_path / "fs.sock").exists()


def test_a_group_that_is_none_is_named_and_no_socket_stays(tmp_path):
    path = tmp_path / "fs.sock"
    with pytest.raises(HostError, match="no group nosuchgroup") as raised:
        stream.listening(path, "nosuchgroup").__enter__()
    assert "groupadd" in raised.value.hint
    assert not path.exists()


def test_what_goes_wrong_while_it_listens_is_not_taken_for_its_own(tmp_path):
    with pytest.raises(KeyError), stream.listening(tmp_path / "fs.sock", None):
        raise KeyError
