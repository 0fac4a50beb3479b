"""Disk images, with the real mkfs programs: made whole, never changed again, locked."""

import fcntl
import os
import stat
import struct
import subprocess
import sys
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from microvm.errors import HostError, MicroVMError, StateError
from microvm.host import superblock, volumes
from microvm.model.plan import LaunchPlan, VolumePlan

MIB = 1 << 20
SIZES = {"xfs": 512, "btrfs": 256}
UUID = str(uuid.UUID(int=0x1234_5678_9ABC_4DEF_8123_4567_89AB_CDEF))
pytestmark = pytest.mark.host

ODD_NAMES = [
    "-x,readonly",
    "a,file=b",
    "two words",
    "new\nline",
    "$(id);'\"",
    "ü" * 100,
    "d/e/image",
]


def volume(image="data.img", *, fs_type="ext4", **fields):
    return VolumePlan(**{
        "index": 0, "image": image, "fs_type": fs_type, "size_mib": SIZES.get(fs_type, 16),
        "uuid": "1234-ABCD" if fs_type == "vfat" else UUID, "label": None, "mkfs_args": (),
        "create": True, "read_only": False, "root": False, **fields,
    })  # fmt: skip


@contextmanager
def prepared(directory, *wanted, layers=(), reset_root=False, say=lambda text: None):
    plan = LaunchPlan(
        name="vm",
        hypervisor="qemu",
        process_name=None,
        argv=("x",),
        volumes=tuple(wanted),
        layers=layers,
    )
    held = volumes.prepare(plan, directory, reset_root=reset_root, say=say)
    try:
        yield held
    finally:
        for descriptor in held:
            os.close(descriptor)


def make(directory, *wanted, **options):
    with prepared(directory, *wanted, **options):
        pass


@pytest.fixture(autouse=True)
def _mkfs(tool):
    tool("mkfs.ext4")


@pytest.fixture
def small(tmp_path, tool):
    """A file system with hardly any room."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    command = [tool("mount"), "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if (done := subprocess.run(command, capture_output=True, check=False)).returncode:
        pytest.skip(f"mount: {done.stderr.decode().strip()}")
    yield place
    subprocess.run([tool("umount"), str(place)], check=True)


@pytest.mark.parametrize("fs_type", ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"])
def test_a_missing_volume_is_made_as_declared(fs_type, tmp_path, tool):
    tool(f"mkfs.{fs_type}")
    wanted = volume(fs_type=fs_type, label="NAME-1")
    make(tmp_path, wanted)
    image = tmp_path / "data.img"
    assert superblock.read(image) == superblock.Superblock(fs_type, wanted.uuid)
    assert b"NAME-1" in image.read_bytes()[: 1 << 17]
    assert volumes.positions([wanted], tmp_path) == {}
    info = image.stat()
    assert info.st_size == wanted.size_mib * MIB
    assert info.st_blocks * 512 < info.st_size / 2, "it takes its room at once"
    assert info.st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_just_a_name(name, tmp_path):
    make(tmp_path, volume(name))
    assert superblock.read(tmp_path / name)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found == [tmp_path / name]


@pytest.mark.parametrize("fs_type", ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"])
def test_any_label_that_may_be_declared_is_just_a_label(fs_type, tmp_path, tool):
    tool(f"mkfs.{fs_type}")
    label = "A_B-1" if fs_type == "vfat" else ".a_B-1"
    make(tmp_path, volume(fs_type=fs_type, label=label))
    assert label.encode() in (tmp_path / "data.img").read_bytes()


def test_a_relative_name_starts_at_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    make(tmp_path / "state", volume("-n.img"))
    assert (tmp_path / "state/-n.img").exists()


def test_a_link_that_leads_nowhere_yet_says_where_to_make_it(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "data.img").symlink_to("big/real.img")
    make(tmp_path, volume())
    assert (tmp_path / "big/real.img").stat().st_size == 16 * MIB
    assert (tmp_path / "data.img").is_symlink()


def test_what_is_there_stays_as_it_is(tmp_path):
    make(tmp_path, volume())
    image = tmp_path / "data.img"
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    make(tmp_path, volume(size_mib=8, label="other"))
    assert before == (image.read_bytes(), image.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("arguments", "said"), [(("-b", "5"), "mkfs.ext4"), (("-U", "random"), "mkfs_extra_args")]
)
def test_a_mkfs_that_fails_or_makes_something_else_leaves_nothing(arguments, said, tmp_path):
    with pytest.raises(MicroVMError) as failure:
        make(tmp_path, volume(mkfs_args=arguments))
    assert said in f"{failure.value} {failure.value.hint}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs", "vfat"])
def test_without_room_nothing_half_written_stays(fs_type, small, tool):
    tool(f"mkfs.{fs_type}")
    with pytest.raises(HostError, match="format the volume") as failure:
        make(small, volume(fs_type=fs_type))
    assert "no room left" in failure.value.hint
    assert list(small.iterdir()) == []


def test_a_place_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="create the volume"):
        make(tmp_path, volume("file/data.img"))
    with pytest.raises(HostError, match="name too long"):
        make(tmp_path, volume("n" * 300))


def test_a_missing_volume_that_we_are_not_to_make_is_refused(tmp_path):
    for wanted, said in (
        (volume(create=False), "auto_create is off"),
        (volume(create=False, read_only=True), "auto_create is off"),
        (volume(size_mib=None), "no size"),
        (volume("/dev/no-such-disk"), "a device is not made"),
    ):
        with pytest.raises(StateError, match=said):
            make(tmp_path, wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "fields", "said"),
    [
        ("ext4", {"fs_type": "xfs"}, "holds ext4, declared is xfs"),
        ("ext2", {}, "holds ext2, declared is ext4"),
        ("ext4", {"size_mib": 17, "uuid": str(uuid.UUID(int=1))}, "not made for this machine"),
        ("ext4", {"size_mib": 17, "read_only": True}, "has 16 MiB, declared are 17, and what is"),
        ("vfat", {"size_mib": 17, "fs_type": "vfat", "uuid": "1234-ABCD"}, "vfat can't grow"),
        (b"\0" * MIB, {}, "holds no file system"),
        (b"", {}, "holds no file system"),
        (b"my thesis", {}, "something else than ext4"),
        (b"my thesis", {"root": True, "create": False}, "something else than ext4"),
    ],
)
def test_what_is_not_as_declared_is_refused_and_never_changed(content, fields, said, tmp_path):
    image = tmp_path / "data.img"
    if isinstance(content, str):
        make(tmp_path, volume(fs_type=content))
    else:
        image.write_bytes(content)
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    with pytest.raises(StateError, match=said) as failure:
        make(tmp_path, volume(**fields))
    assert failure.value.hint
    assert before == (image.read_bytes(), image.stat().st_mtime_ns)
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("fs_type", ["ext2", "ext3", "ext4", "xfs", "btrfs"])
def test_an_image_grows_and_the_guest_is_to_grow_its_file_system(fs_type, tmp_path, tool):
    tool(f"mkfs.{fs_type}")
    small, said = volume(fs_type=fs_type), []
    make(tmp_path, small)
    image = tmp_path / "data.img"
    before, size = image.read_bytes(), small.size_mib * MIB
    assert superblock.read(image).size == size
    assert volumes.outgrown([small], tmp_path) == ()
    large = replace(small, size_mib=small.size_mib + 7, index=3)
    assert volumes.outgrown([large], tmp_path) == (3,)
    make(tmp_path, large, say=said.append)
    assert said == [f"the volume {image} grows: it had {small.size_mib} MiB, "
                    f"declared are {large.size_mib}"]  # fmt: skip
    assert image.read_bytes() == before + bytes(7 * MIB)
    assert image.stat().st_blocks * 512 < size, "it takes its room at once"
    # Nothing more to say; the guest is asked until its file system is as large.
    make(tmp_path, large, say=said.append)
    assert len(said) == 1
    assert volumes.outgrown([large], tmp_path) == (3,)


def test_a_file_system_that_mkfs_made_smaller_than_its_image_may_be_read_only(tmp_path, tool):
    """mkfs.ext4 leaves out a last group that has no room for its own tables."""
    tool("mkfs.ext4")
    odd = volume(size_mib=513)
    make(tmp_path, odd)
    assert superblock.read(tmp_path / "data.img").size < 513 * MIB
    make(tmp_path, replace(odd, read_only=True))


def test_no_volume_shrinks_and_that_is_said(tmp_path):
    make(tmp_path, volume())
    said, before = [], (tmp_path / "data.img").read_bytes()
    make(tmp_path, volume(size_mib=8), say=said.append)
    assert "16 MiB, declared are 8: it is left as it is" in said[0]
    assert (tmp_path / "data.img").read_bytes() == before


def test_who_has_to_grow_what_nothing_mounts_is_said(tmp_path):
    make(tmp_path, volume())
    said = []
    make(tmp_path, volume(size_mib=17, mounted=False), say=said.append)
    assert "the guest has to grow its file system" in said[0]


def test_a_device_is_held_alone_and_never_grown(tmp_path, tool):
    if os.geteuid() != 0:
        pytest.skip("only root has block devices")
    make(tmp_path, volume())
    losetup = tool("losetup")
    command = [losetup, "--find", "--show", tmp_path / "data.img"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"losetup: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        number = Path(device).stat().st_rdev
        os.mknod(tmp_path / "twin", 0o600 | stat.S_IFBLK, number)
        with prepared(tmp_path, volume(device)):
            assert "is in use" in elsewhere(tmp_path, "twin")
        with pytest.raises(StateError, match="16 MiB, declared are 17, and a device does not"):
            make(tmp_path, volume(device, size_mib=17))
        (tmp_path / "there").mkdir()
        subprocess.run([tool("mount"), device, tmp_path / "there"], check=True)
        try:
            with pytest.raises(StateError, match="is in use: mounted"):
                make(tmp_path, volume(device))
        finally:
            subprocess.run([tool("umount"), tmp_path / "there"], check=True)
    finally:
        subprocess.run([losetup, "--detach", device], check=True)


HEADERS = {
    "raw": bytes(MIB), "qcow2": b"QFI\xfb" + bytes(MIB), "vhdx": b"vhdxfile" + bytes(MIB),
    "vhd": bytes(MIB) + b"conectix" + bytes(504),
}  # fmt: skip


@pytest.mark.parametrize("declared", HEADERS)
@pytest.mark.parametrize("found", HEADERS)
def test_an_image_of_another_type_than_declared_is_refused(declared, found, tmp_path):
    path = tmp_path / "data.img"
    path.write_bytes(HEADERS[found])
    wanted = volume(image_type=declared, size_mib=None, create=False)
    if declared == found != "raw":
        make(tmp_path, wanted)
    elif declared != "raw":  # a raw image is looked into
        with pytest.raises(StateError, match=f"is {found}, declared is {declared}"):
            make(tmp_path, wanted)
    assert path.read_bytes() == HEADERS[found]


GUESSED = {
    "qcow2": b"QFI\xfb", "composite": b"composite_disk\x1d", "android-sparse": b"\x3a\xff\x26\xed",
}  # fmt: skip


@pytest.mark.parametrize("kind", GUESSED)
def test_a_guest_can_not_choose_the_format_of_its_disk(kind, tmp_path):
    """An ext4 file system leaves its first kilobyte to whoever writes it."""
    make(tmp_path, volume())
    path = tmp_path / "data.img"
    with path.open("r+b") as file:
        file.write(GUESSED[kind])
    image = path.read_bytes()
    make(tmp_path, volume())  # a VMM that is told the format
    with pytest.raises(StateError, match=f"like a {kind} image") as raised:
        make(tmp_path, volume(guessed=True))
    assert raised.value.hint
    assert path.read_bytes() == image


def test_a_disk_of_its_guests_is_taken_where_the_format_is_guessed(tmp_path):
    make(tmp_path, volume(guessed=True))
    make(tmp_path, volume(guessed=True))


@pytest.mark.parametrize("kind", ["qcow2", "vhdx", "vpc"])
def test_image_types_are_told_apart_as_qemu_makes_them(kind, tmp_path, tool):
    path = tmp_path / "data.img"
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", kind, str(path), "16M"], check=True)
    assert superblock.image_type(path) == {"vpc": "vhd"}.get(kind, kind)


def test_an_image_that_is_not_raw_is_never_made(tmp_path):
    with pytest.raises(StateError) as raised:
        make(tmp_path, volume(image_type="qcow2"))
    assert "images of type qcow2 aren't made" in raised.value.message
    assert "qemu-img convert" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_disk_made_elsewhere_is_found_by_position(tmp_path):
    make(tmp_path, volume("other.img", uuid=str(uuid.uuid4())))
    (tmp_path / "parts.img").write_bytes(b"a partition table")
    wanted = (volume("other.img"), volume("parts.img", index=1, create=False, size_mib=None))
    assert volumes.positions([*wanted, volume("missing.img", index=2)], tmp_path) == {
        0: "ext4",
        1: "",
    }
    make(tmp_path, *wanted)


def test_what_is_no_disk_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        for attempt in (make, lambda place, one: volumes.positions([one], place)):
            with pytest.raises(StateError, match="neither a file nor a block device"):
                attempt(tmp_path, volume(name))


def elsewhere(directory, name, *, read_only=False):
    """Ask for a volume in a process of its own; return what it says."""
    code = f"""
from pathlib import Path
from microvm.errors import MicroVMError
from microvm.host import volumes
from microvm.model.plan import LaunchPlan, VolumePlan
one = VolumePlan(index=0, image={name!r}, size_mib=16, fs_type="ext4", uuid={UUID!r}, label=None,
                 mkfs_args=(), create=True, read_only={read_only}, root=False)
plan = LaunchPlan(name="b", hypervisor="qemu", process_name=None, argv=("x",), volumes=(one,))
try:
    volumes.prepare(plan, Path({str(directory)!r}), reset_root=False)
    print("got it")
except MicroVMError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return done.stdout.strip()


def test_a_volume_has_one_user_by_whatever_name(tmp_path):
    with prepared(tmp_path, volume()):
        (tmp_path / "soft.img").symlink_to("data.img")
        (tmp_path / "hard.img").hardlink_to(tmp_path / "data.img")
        for name in ("data.img", "soft.img", "hard.img"):
            assert "is in use by another VMM" in elsewhere(tmp_path, name)
            assert "is in use by another VMM" in elsewhere(tmp_path, name, read_only=True)
        assert elsewhere(tmp_path, "free.img") == "got it"
    assert elsewhere(tmp_path, "hard.img") == "got it"


def test_who_has_a_volume_is_named(tmp_path):
    state = tmp_path / "web"
    state.mkdir()
    make(state, volume())
    holder = subprocess.Popen(
        [sys.executable, "-c", """
import fcntl, sys
image, lock = open("data.img"), open("lock", "w")
fcntl.flock(image, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""],
        cwd=state, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        (tmp_path / "other.img").symlink_to("web/data.img")
        assert f"another VMM (machine web, process {holder.pid})" in elsewhere(
            tmp_path, "other.img"
        )
    finally:
        holder.communicate()


@pytest.mark.parametrize(("kind", "shared"), [(fcntl.F_RDLCK, True), (fcntl.F_WRLCK, False)])
def test_readers_share_with_a_vmm_that_locks_all_bytes(kind, shared, tmp_path):
    """As cloud-hypervisor does."""
    make(tmp_path, volume())
    with (tmp_path / "data.img").open("r+b") as file:
        fcntl.fcntl(file, 37, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))  # F_OFD_SETLK
        said = elsewhere(tmp_path, "data.img", read_only=True)
        assert (said == "got it") is shared
        assert "is in use by another VMM" in elsewhere(tmp_path, "data.img")


def test_readers_share_a_volume_that_nobody_writes(tmp_path):
    make(tmp_path, volume())
    with prepared(tmp_path, volume(read_only=True)):
        assert elsewhere(tmp_path, "data.img", read_only=True) == "got it"
        assert "is in use" in elsewhere(tmp_path, "data.img")


def test_the_lock_lives_as_long_as_a_process_that_inherited_it(tmp_path):
    with prepared(tmp_path, volume()) as held:
        vmm = subprocess.Popen(["sleep", "60"], pass_fds=held)
    try:
        assert "is in use" in elsewhere(tmp_path, "data.img")
    finally:
        vmm.kill()
        vmm.wait()
    assert elsewhere(tmp_path, "data.img") == "got it"


def test_one_image_by_two_names_in_one_machine_is_refused_and_nothing_stays_locked(tmp_path):
    make(tmp_path, volume())
    (tmp_path / "same.img").symlink_to("data.img")
    with pytest.raises(StateError, match="is in use"):
        make(tmp_path, volume(), volume("same.img", index=1))
    assert elsewhere(tmp_path, "data.img") == "got it"


def test_a_root_volume_belongs_to_its_layers(tmp_path):
    root = volume("root.img", root=True)
    make(tmp_path, root, layers=("a", "b"))
    make(tmp_path, root, layers=("a", "b"))
    with pytest.raises(StateError, match="other layers"):
        make(tmp_path, root, layers=("a", "c"))
    (tmp_path / "root.img.layers").write_text("{")
    with pytest.raises(StateError, match="can't tell") as failure:
        make(tmp_path, root, layers=("a", "b"))
    assert "--reset-root" in failure.value.hint


def test_a_root_volume_that_was_removed_takes_its_layers_with_it(tmp_path):
    root = volume("root.img", root=True)
    make(tmp_path, root, layers=("a",))
    (tmp_path / "root.img").unlink()
    make(tmp_path, root, layers=("b",))


def test_a_root_volume_starts_anew_where_its_link_leads(tmp_path):
    root = volume("root.img", root=True)
    (tmp_path / "big").mkdir()
    (tmp_path / "root.img").symlink_to("big/real.img")
    make(tmp_path, root, layers=("a",))
    with (tmp_path / "big/real.img").open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"old data")
    make(tmp_path, root, layers=("b",), reset_root=True)
    assert b"old data" not in (tmp_path / "big/real.img").read_bytes()
    assert (tmp_path / "root.img").is_symlink()


def test_a_root_volume_that_can_not_be_made_again_is_not_removed(tmp_path):
    make(tmp_path, volume("root.img"))
    for fields in ({"create": False}, {"size_mib": None}):
        with pytest.raises(StateError, match="start anew"):
            make(tmp_path, volume("root.img", root=True, **fields), reset_root=True)
    assert superblock.read(tmp_path / "root.img")
