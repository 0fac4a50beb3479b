"""The disk that brings credentials to a guest, as bytes."""

import io
import tarfile

import pytest

from microvm.errors import HostError
from microvm.host import credentials
from microvm.model.plan import CredentialDisk


def disk(**files):
    return CredentialDisk(image="c.img", machine_id="1" * 32, files=files)


def test_the_disk_names_the_machine_and_holds_the_files(tmp_path):
    (tmp_path / "a").write_bytes(b"secret\0")
    credentials.write(disk(**{"b.key": str(tmp_path / "a"), "a": str(tmp_path / "a")}), tmp_path)
    image = tmp_path / "c.img"
    data = image.read_bytes()
    assert image.stat().st_mode & 0o777 == 0o600
    assert len(data) % 512 == 0
    assert data[:512].rstrip(b"\0") == b"microvm-credentials " + b"1" * 32 + b"\n"
    with tarfile.open(fileobj=io.BytesIO(data[512:])) as tar:
        members = tar.getmembers()
        assert [(m.name, m.mode, m.uid, m.gid, m.type) for m in members] == [
            ("a", 0o400, 0, 0, tarfile.REGTYPE), ("b.key", 0o400, 0, 0, tarfile.REGTYPE),
        ]  # fmt: skip
        assert tar.extractfile("b.key").read() == b"secret\0"


def test_a_file_that_is_missing_or_too_large_is_named(tmp_path):
    with pytest.raises(HostError, match=r"read the credential key.*No such file"):
        credentials.write(disk(key=str(tmp_path / "nosuch")), tmp_path)
    (tmp_path / "large").write_bytes(b"x" * (credentials.LARGEST + 1))
    with pytest.raises(HostError, match="the credential key is too large"):
        credentials.write(disk(key=str(tmp_path / "large")), tmp_path)
    assert not (tmp_path / "c.img").exists()
