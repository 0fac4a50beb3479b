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


def test_what_systemd_would_leave_out_is_a_problem_of_its_key(tmp_path):
    sizes = {"a": credentials.LARGEST // 2, "b": credentials.LARGEST // 2, "c": 1}
    files = {name: tmp_path / name for name in sizes}
    for name, size in sizes.items():
        files[name].write_bytes(b"x" * size)
    assert not list(credentials.problems({name: files[name] for name in "ab"}))
    [together] = credentials.problems(files)
    assert together.where == "credential_files"
    assert "1048576 bytes of credentials in all, these are 1048577" in together.message
    files["a"].write_bytes(b"x" * (credentials.LARGEST + 1))
    [alone] = credentials.problems(files)
    assert alone.where == "credential_files.a"
    assert "more than the 1048576 bytes that systemd takes" in alone.message
    assert "a volume" in alone.hint
    [missing] = credentials.problems({"d": tmp_path / "d"})
    assert missing.message == f"there is no {tmp_path}/d"


def test_a_file_that_is_missing_or_too_large_is_named(tmp_path):
    with pytest.raises(HostError, match=r"read the credential key.*No such file"):
        credentials.write(disk(key=str(tmp_path / "nosuch")), tmp_path)
    (tmp_path / "large").write_bytes(b"x" * (credentials.LARGEST + 1))
    with pytest.raises(HostError, match="the credential key is too large"):
        credentials.write(disk(key=str(tmp_path / "large")), tmp_path)
    assert not (tmp_path / "c.img").exists()
