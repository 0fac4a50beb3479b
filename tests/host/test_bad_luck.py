"""What bad mirrors, hosts and places get: one message that says what to do, and a way to go on."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from place import Place

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]
MACHINE = "qemu-system-x86_64"


def refused(ran, status: int, *words: str) -> None:
    """See that a command failed with one message, which has these words, and no traceback."""
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr


def test_the_nearest_names_of_each_missing_package_are_told(faulty, make_place):
    place = make_place(lock=False, mirror=faulty.url)
    place.declare("names", "packages = ['openssh-servr', 'tre', 'no-such-thing-at-all']")
    refused(place.build(), 1, "Unable to locate package tre", "openssh-server", "tree")
    assert place.left() == []


def test_a_mirror_that_breaks_off_is_told_and_the_same_command_goes_on(faulty, make_place):
    place = make_place(packages=False, lock=False, mirror=faulty.url)
    faulty.fault = lambda path: "cut" if "Packages" in path else "serve"
    refused(place.build(), 1, "could not fetch the package lists", "check the network")
    assert not (place.project / "microvm.lock").exists()
    faulty.fault = lambda path: "cut" if "perl-base" in path else "serve"
    refused(place.build(), 1, "perl-base", "run the same command again")
    assert place.left() == []
    faulty.fault = lambda path: "serve"
    built = place.build()
    assert built.returncode == 0, built.stderr


def test_a_lock_whose_packages_are_gone_names_the_way_out(faulty, make_place):
    place = make_place(lock=False, mirror=faulty.url)
    assert place.cli("lock", str(place.project), timeout=300).returncode == 0
    for package in (place.store / ".packages").iterdir():
        package.unlink()
    faulty.fault = lambda path: "missing" if "busybox" in path else "serve"
    refused(place.build(), 1, "404", "busybox", "microvm lock --update")
    assert place.left() == []


def test_lists_that_were_changed_on_the_way_are_refused(faulty, make_place):
    place = make_place(lock=False, mirror=faulty.url)
    signed = next(path for path in faulty.files if path.endswith("trixie/InRelease"))
    genuine = faulty.files[signed]
    faulty.files[signed] = genuine.read_bytes().replace(b"Suite: stable", b"Suite: unstable")
    refused(place.build(), 1, "signature")
    lists = next(path for path in faulty.files if "trixie/main" in path)
    faulty.files[signed] = genuine
    kept, faulty.files[lists] = faulty.files[lists], b"Package: evil\n"
    refused(place.build(), 1, "could not fetch the package lists")
    faulty.files[lists] = kept
    assert place.cli("lock", str(place.project), timeout=300).returncode == 0


def test_a_damaged_copy_of_a_package_is_found_and_fetched_anew(faulty, make_place):
    place = make_place(lock=False, mirror=faulty.url)
    assert place.cli("lock", str(place.project), timeout=300).returncode == 0
    packages = sorted((place.store / ".packages").iterdir())
    for short in packages[:5]:  # as a power cut leaves it
        os.truncate(short, 100)
    for bent in packages[5:]:
        with bent.open("r+b") as file:
            file.seek(bent.stat().st_size // 2)
            file.write(b"x" * 100)
    found = place.cli("store", "verify")
    assert found.returncode == 1
    assert "is not what was downloaded" in found.stdout
    for _ in range(2):  # once for the kernel, once for the base
        refused(place.build(), 4, "were damaged", "run the same command again")
    built = place.build()
    assert built.returncode == 0, built.stderr
    assert place.left() == []
    place.verify()


@pytest.fixture
def hidden(tool):
    """Return a command's prefix that hides a program from it, on this host alone for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to cover a directory")
    unshare = tool("unshare")
    script = (
        "set -e; program=$1; shift; place=$(dirname $program); mount -t tmpfs none /mnt; "
        "mkdir /mnt/u /mnt/w; mount -t overlay -o lowerdir=$place,upperdir=/mnt/u,workdir=/mnt/w "
        'none $place; rm $program; exec "$@"'
    )

    def prefix(name: str) -> list[str]:
        program = Path(tool(name))
        # Where the directory itself is a link, the overlay covers what it leads to.
        program = program.parent.resolve() / program.name
        tried = [unshare, "-m", "sh", "-c", script, "sh", str(program)]
        if subprocess.run([*tried, "true"], check=False, capture_output=True).returncode != 0:
            pytest.skip("this host mounts no overlay")
        assert program.exists()
        return tried

    return prefix


@pytest.mark.parametrize(
    ("program", "package"),
    [("mkfs.erofs", "erofs-utils"), ("depmod", "kmod"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")],
)
def test_a_missing_program_is_named_with_its_package(program, package, hidden, make_place):
    place = make_place(lock=program != "apt-get")
    done = subprocess.run(
        [*hidden(program), *place.cli.command("build", str(place.project))],
        env=place.cli.env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    refused(done, 4, f"the program {program} is missing", f"apt install {package}")
    assert place.left() == []


def test_a_missing_mkfs_leaves_no_half_volume(hidden, place, tmp_path):
    volume = "[[microvms.small.volumes]]\nimage = 'd.img'\nsize = 64\nmount_point = '/d'"
    place.declare("volume", volume)
    done = subprocess.run(
        [*hidden("mkfs.ext4"), *place.cli.command("run", str(place.project), "--", "true")],
        env={**place.cli.env, "XDG_STATE_HOME": str(tmp_path)}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    refused(done, 125, "mkfs.ext4 is missing", "apt install e2fsprogs")
    left = {path.name for path in tmp_path.rglob("small/*")}
    assert left - {"host-id"} == {"current", "lock"}  # an id where the host has none


@pytest.fixture
def read_only(tool):
    """Make a directory read-only, also for root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    mount, umount, covered = tool("mount"), tool("umount"), []

    def cover(directory: Path) -> None:
        subprocess.run([mount, "--bind", directory, directory], check=True)
        covered.append(directory)
        subprocess.run([mount, "-o", "remount,bind,ro", directory], check=True)

    yield cover
    for directory in covered:
        subprocess.run([umount, directory], check=True)


def test_a_read_only_project_has_its_lock_elsewhere(faulty, make_place, read_only):
    place = make_place(lock=False, mirror=faulty.url)
    read_only(place.project)
    locked = place.cli("lock", str(place.project), timeout=300)
    assert locked.returncode == 0, locked.stderr
    assert [path.name for path in place.project.iterdir()] == ["microvm.toml"]
    assert list(Path(place.cli.env["XDG_STATE_HOME"]).rglob("microvm.lock"))


def test_a_read_only_store_serves_what_it_has(place, read_only):
    place.declare("frozen")
    built = place.build()
    assert built.returncode == 0, built.stderr
    read_only(place.store)
    again = place.build()
    assert (again.returncode, again.stdout) == (0, built.stdout), again.stderr
    assert place.cli("store", "verify", timeout=300).returncode == 0
    place.declare("thawed")
    refused(place.build(), 4, "Read-only file system", "choose a place that can be written")
    refused(place.cli("store", "gc"), 4, "Read-only file system")


def test_a_store_of_another_user_is_refused_in_one_message(user_cli, known):
    place = Place(user_cli, user_cli.home / "others", known.mirror)
    place.declare("others")
    user_cli.own(place.project)
    for words in (["build", str(place.project)], ["store", "gc"], ["store", "verify"]):
        ran = user_cli("--store", "/root/microvm-store", *words)
        refused(ran, 4, "Permission denied")


def test_a_store_without_user_attributes_is_told_what_it_needs(known, make_place, tmp_path, tool):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    where = tmp_path / "ramfs"
    where.mkdir()
    command = [tool("mount"), "-t", "ramfs", "ramfs", where]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this kernel has no ramfs")
    try:
        place = make_place()
        shutil.copytree(place.store, where / place.store.name)
        place.store = place.cli.store = where / place.store.name
        place.cli.env = {**place.cli.env, "MICROVM_STORE": str(place.store)}
        refused(place.build(), 4, "user.* attributes", "ext4")
        assert place.left() == []
    finally:
        subprocess.run([tool("umount"), "-l", where], check=True)


def test_a_port_that_is_taken_is_named_with_who_to_ask(make_place):
    place = make_place(lock=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        forward = f"host = {{ port = {port} }}\nguest = {{ port = 80 }}"
        (place.project / "microvm.toml").write_text(
            f"[[microvms.small.forward_ports]]\n{forward}\n"
            "[[microvms.small.interfaces]]\ntype = 'user'\nid = 'n'\n"
            + (f"[microvms.small.system]\nmirror = '{place.mirror}'\n" if place.mirror else "")
        )
        ran = place.cli("run", str(place.project), timeout=900)
    refused(ran, 5, f"127.0.0.1:{port}/tcp", "in use", "ss -lnp")


def test_an_image_that_somebody_elses_qemu_has_is_not_attached(place, tmp_path, tool):
    volume = "[[microvms.small.volumes]]\nimage = '{0}'\nsize = 64\nmount_point = '/d'"
    image = tmp_path / "d.img"
    place.declare("foreign", volume.format(image))
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([tool("mkfs.ext4"), "-q", image], check=True)
    qemu = subprocess.Popen(
        [
            tool(MACHINE), "-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none",
            "-S", "-monitor", "stdio", "-drive", f"if=none,id=a,format=raw,file={image}",
            "-device", "virtio-blk,drive=a",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert b"QEMU" in qemu.stdout.readline()  # its monitor greets when the disk is attached
        ran = place.cli("run", str(place.project), timeout=300)
        refused(ran, 5, "in use by another VMM", str(image))
    finally:
        qemu.kill()
        qemu.communicate()


def test_a_build_whose_worker_is_killed_says_so(place):
    """As the kernel does when memory runs out."""
    place.declare("murdered", "run = ['sleep 98764']")
    process = place.start(text=True)
    line = process.stdout.readline()
    while "run commands" not in line:
        assert line
        line = process.stdout.readline()
    [worker] = [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if f"PPid:\t{process.pid}\n" in _status(entry)
    ]
    os.kill(worker, 9)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 4, said
    assert "was killed" in said
    assert "memory" in said
    assert place.left() == []


def _status(process: Path) -> str:
    try:
        return (process / "status").read_text()
    except OSError:
        return ""
