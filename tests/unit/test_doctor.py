"""What the doctor says of a hypervisor's program, by the version that it tells."""

import os

import pytest

from microvm.hypervisors import hypervisor
from microvm.launch import doctor
from microvm.model.declaration import HypervisorKind


@pytest.fixture
def said_of(tmp_path, monkeypatch):
    """Return what is said of a firecracker of this version that is first on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def examine(version):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin/firecracker"
        program.write_text(f"#!/bin/sh\necho Firecracker v{version}\n")
        program.chmod(0o755)
        return next(f for f in doctor.examine(tmp_path) if f.topic == "firecracker")

    return examine


def test_of_each_that_tells_its_version_the_last_known_one_is_kept():
    known = {kind for kind in HypervisorKind if hypervisor(kind).newest}
    assert known == set(HypervisorKind) - {"crosvm"}  # whose numbers tell nothing


def test_a_version_that_is_newer_than_what_is_known_is_used_and_said_to_be_so(said_of):
    found = said_of("1.99.0")
    assert found.state == "good"
    assert "1.99.0 at " in found.text
    assert "newer than 1.16, the last that is known: used like that one" in found.text


def test_a_known_version_is_just_told(said_of):
    assert said_of("1.16.1").text.endswith("/bin/firecracker")


def test_a_version_that_is_too_old_is_a_lack(said_of):
    found = said_of("1.7.0")
    assert found.state == "lacking"
    assert found.text.endswith("older than 1.8, the first that can be used")
    assert found.mend.startswith("microvm hypervisors install firecracker ")
