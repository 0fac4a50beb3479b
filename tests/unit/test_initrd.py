"""The initrd: an archive whose bytes follow from its inputs, with the modules that a boot needs."""

import gzip
import lzma
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from microvm.guests.debian import initrd

DEPENDENCIES = """\
kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz:
kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/fs/vfat/vfat.ko.gz:
kernel/sound/snd.ko.xz:
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    home = tmp_path / "tree/lib/modules/6.12-test"
    for line in DEPENDENCIES.splitlines():
        path = home / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = b"module " + initrd.module_name(path.name).encode()
        pack = lzma.compress if path.suffix == ".xz" else gzip.compress
        path.write_bytes(pack(plain))
    (home / "modules.dep").write_text(DEPENDENCIES)
    (tmp_path / "busybox").write_bytes(b"busybox")
    return tmp_path


def write(directory: Path, name: str = "initrd") -> Path:
    target = directory / name
    initrd.write_initrd(
        target,
        modules_tree=directory / "tree",
        kernel_release="6.12-test",
        busybox=directory / "busybox",
        script=b"#!/bin/busybox sh\n",
    )
    return target


def unpack(archive: Path, directory: Path) -> Path:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is missing")
    directory.mkdir()
    with archive.open("rb") as data:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=data, cwd=directory, check=True)
    return directory


def test_the_same_inputs_give_the_same_bytes(modules):
    first = write(modules).read_bytes()
    os.utime(modules / "busybox", (1, 1))
    (modules / "busybox").chmod(0o600)
    assert write(modules, "again").read_bytes() == first


def test_cpio_reads_the_archive_as_it_was_meant(modules, tmp_path):
    root = unpack(write(modules), tmp_path / "out")
    assert (root / "init").read_bytes() == b"#!/bin/busybox sh\n"
    assert (root / "init").stat().st_mode & 0o777 == 0o755
    assert (root / "bin/sh").readlink() == Path("busybox")
    assert all((root / name).is_dir() for name in ("proc", "sys", "dev", "run", "sysroot"))


def test_common_modules_are_plain_rare_ones_as_they_came(modules, tmp_path):
    home = unpack(write(modules), tmp_path / "out") / "lib/modules/6.12-test"
    assert (home / "erofs.ko").read_bytes() == b"module erofs"
    assert (home / "libcrc32c.ko").read_bytes() == b"module libcrc32c"
    assert lzma.decompress((home / "xfs.ko.xz").read_bytes()) == b"module xfs"
    assert gzip.decompress((home / "vfat.ko.gz").read_bytes()) == b"module vfat"


def test_modules_dep_names_what_is_in_the_archive(modules, tmp_path):
    home = unpack(write(modules), tmp_path / "out") / "lib/modules/6.12-test"
    lines = (home / "modules.dep").read_text().splitlines()
    assert "xfs.ko.xz: libcrc32c.ko" in lines
    assert "erofs.ko: libcrc32c.ko" in lines
    for line in lines:
        path, *needs = line.replace(":", "").split()
        assert all((home / name).is_file() for name in (path, *needs))


def test_modules_that_no_boot_needs_stay_out():
    names = set(map(initrd.module_name, initrd.boot_modules(DEPENDENCIES)))
    assert names == {"erofs", "libcrc32c", "virtio_blk"}


def test_modules_are_unpacked_where_they_lie_and_others_left_alone(modules):
    home = modules / "tree/lib/modules/6.12-test"
    initrd.unpack_modules(home, ("erofs", "vfat", "not_there"))
    found = {path.name: path.read_bytes() for path in home.rglob("*.ko*")}
    assert found["erofs.ko"] == b"module erofs"
    assert found["vfat.ko"] == b"module vfat"
    assert {"xfs.ko.xz", "snd.ko.xz"} < found.keys()
    assert not {"erofs.ko.xz", "vfat.ko.gz"} & found.keys()


def test_a_kernel_with_everything_built_in_has_no_modules():
    assert initrd.boot_modules("") == {}


def test_every_file_starts_at_a_multiple_of_four():
    archive = initrd.Cpio()
    for size in range(6):
        archive.file("n" * (size + 1), b"x" * size, 0o644)
    data = archive.finish()
    assert len(data) % 4 == 0
    assert all(at % 4 == 0 for at in range(len(data)) if data.startswith(b"070701", at))


@pytest.mark.parametrize("script", ["init", "greet", "console", "job", "ssh-keys", "poweroff"])
def test_the_guest_s_scripts_are_valid_shell(script):
    path = resources.files("microvm.guests.debian") / "data" / script
    done = subprocess.run(["sh", "-n", os.fspath(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is missing")
@pytest.mark.parametrize("script", ["job-agent", "power-button"])
def test_the_guest_s_programs_are_valid_perl(script):
    path = resources.files("microvm.guests.debian") / "data" / script
    done = subprocess.run(["perl", "-c", os.fspath(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
