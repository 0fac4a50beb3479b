"""A socket of ours takes nobody's place, and says what keeps it from being there."""

import pytest

from microvm.errors import HostError
from microvm.host import stream


def test_a_file_at_its_place_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes"
    path.write_text("mine\n")
    with pytest.raises(HostError, match="notes: Address already in use"):
        stream.listening(path, None).__enter__()
    assert path.read_text() == "mine\n"


def test_a_group_that_is_none_is_named_and_no_socket_stays(tmp_path):
    path = tmp_path / "fs.sock"
    with pytest.raises(HostError, match="no group nosuchgroup") as raised:
        stream.listening(path, "nosuchgroup").__enter__()
    assert "groupadd" in raised.value.hint
    assert not path.exists()


def test_what_goes_wrong_while_it_listens_is_not_taken_for_its_own(tmp_path):
    with pytest.raises(KeyError), stream.listening(tmp_path / "fs.sock", None):
        raise KeyError
