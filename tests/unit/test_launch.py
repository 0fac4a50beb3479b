"""Console, job protocol and initrd, as data and with the real guest program."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from microvm.guests.debian.initrd import Cpio, boot_modules, module_name
from microvm.host import superblock
from microvm.hypervisors.kernel_line import disk_name
from microvm.launch import main as launcher
from microvm.launch.console import Console
from microvm.launch.job import JobStream, frame

AGENT = Path(__file__).parents[2] / "src/microvm/guests/debian/data/job-agent"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_mark_is_cut_out_of_the_console_in_any_pieces(size):
    data = b"hello\x1b[1m bold\x1b]6977;up\x07 world\x1b"
    console = Console()
    shown = b"".join(console.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert console.up
    assert shown + console.feed(b"[0m") == b"hello\x1b[1m bold world\x1b[0m"


def test_a_failure_mark_tells_why_and_the_tail_is_plain_text():
    console = Console()
    console.feed(b"one\r\n\x1b[31mtwo\x1b[0m\r\n\x1b]6977;failed;no disk\x07")
    assert console.failed == "no disk"
    assert console.tail() == "\n  one\n  two"


def test_a_panic_is_known_however_long_its_traces_are():
    console = Console()
    console.feed(b"[    1.000000] Kernel panic - not syncing: sysrq triggered crash\r\n")
    console.feed(b"[    1.000001]  ? do_syscall_64+0x1/0x2\r\n" * 100)
    assert console.panic == "sysrq triggered crash"


class Guest:
    """The real agent at the other end of a socket pair."""

    def __init__(self, *command, directory="/", user=""):
        self.output = {1: b"", 2: b""}
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            ["perl", str(AGENT), f"fd:{theirs.fileno()}"], pass_fds=(theirs.fileno(),)
        )
        theirs.close()
        self.link = ours
        self.job = JobStream(command, directory=directory, user=user, write=self._take)

    def _take(self, descriptor, data):
        self.output[descriptor] += data

    def run(self, data=b""):
        self.link.settimeout(45)
        pending, ended = data, False
        while not self.job.ended:
            received = self.link.recv(65536)
            assert received, "the agent closed the stream"
            self.job.receive(received)
            if self.job.started and not ended:
                for start in range(0, len(pending), 30000):
                    self.job.input(pending[start : start + 30000])
                self.job.input(b"")
                ended = True
            if self.job.outgoing:
                self.link.setblocking(False)
                try:
                    count = self.link.send(self.job.outgoing)
                    del self.job.outgoing[:count]
                except BlockingIOError:
                    pass
                self.link.settimeout(45)
        self.link.close()
        self.process.wait(45)
        return self.job


@pytest.fixture(autouse=True)
def _perl(tool):
    tool("perl")


def test_a_jobs_output_is_byte_exact_and_separate():
    guest = Guest("perl", "-e", "print map chr, 0..255; print STDERR qq(e\\0e)")
    assert guest.run().status == 0
    assert guest.output == {1: bytes(range(256)), 2: b"e\0e"}


def test_standard_input_reaches_the_job_with_its_end():
    data = os.urandom(500_000)
    guest = Guest("cat")
    assert guest.run(data).status == 0
    assert guest.output[1] == data


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), 137),
        (("/nosuch/program",), 127),
        (("/etc",), 126),
    ],
)
def test_the_exit_status_is_the_jobs(command, status):
    assert Guest(*command).run().status == status


def test_a_job_that_can_not_start_says_why():
    assert "nosuchdir" in (Guest("true", directory="/nosuchdir").run().failure or "")
    assert "nobody-here" in (Guest("true", user="nobody-here").run().failure or "")


def test_arguments_are_passed_as_they_are():
    words = ("perl", "-e", "print join '|', @ARGV", "a b", "", "$x;'\"", "ü")
    guest = Guest(*words)
    guest.run()
    assert guest.output[1].decode() == "a b||$x;'\"|ü"


def test_frames_have_type_length_and_payload():
    assert frame("o", b"ab") == b"o\0\0\0\2ab"


def test_boot_modules_come_with_what_they_need():
    table = "fs/erofs.ko.xz: lib/libcrc32c.ko.xz\nlib/libcrc32c.ko.xz:\nx/unused.ko:\n"
    assert set(map(module_name, boot_modules(table))) == {"erofs", "libcrc32c"}


def test_a_cpio_archive_is_the_same_bytes_each_time_and_readable(tool, tmp_path):
    def archive():
        cpio = Cpio()
        cpio.directory("d")
        cpio.file("d/f", b"text", 0o755)
        cpio.symlink("l", "d/f")
        return cpio.finish()

    assert archive() == archive()
    listed = subprocess.run([tool("cpio"), "-t"], input=archive(), capture_output=True, check=True)
    assert listed.stdout.split() == [b"d", b"d/f", b"l"]


def test_disks_are_named_as_the_kernel_names_them():
    assert [disk_name(n) for n in (0, 25, 26, 27, 701, 702)] == [
        "vda",
        "vdz",
        "vdaa",
        "vdab",
        "vdzz",
        "vdaaa",
    ]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ext2", ["-qFU"]), ("ext4", ["-qFU"]), ("btrfs", ["-qU"]), ("vfat", ["-i"])],
)
def test_superblocks_tell_file_system_and_uuid(kind, options, tmp_path, tool):
    image = tmp_path / "image"
    uuid = "1234ABCD" if kind == "vfat" else "5e0f0f0c-6d76-4d50-8a6c-6d6963726f76"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(
        [tool(f"mkfs.{kind}"), *options, uuid, str(image)], check=True, capture_output=True
    )
    found = superblock.read(image)
    assert found
    assert (found.fs_type, found.uuid.replace("-", "")) == (kind, uuid.replace("-", ""))


def test_a_root_volume_that_another_vmm_has_is_not_reset(tmp_path):
    import fcntl

    from microvm.errors import StateError
    from microvm.host import volumes
    from microvm.model.plan import LaunchPlan, VolumePlan

    image = tmp_path / "root.img"
    image.write_bytes(b"data")
    volume = VolumePlan(
        index=0, image="root.img", size_mib=1, fs_type="ext4", uuid="u", label=None,
        mkfs_args=(), create=True, read_only=False, root=True,
    )  # fmt: skip
    plan = LaunchPlan(
        name="a", hypervisor="qemu", process_name=None, argv=("x",), volumes=(volume,)
    )
    with image.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="in use"):
            volumes.prepare(plan, tmp_path, reset_root=True)
    assert image.read_bytes() == b"data"


def test_a_runners_script_names_itself_also_through_a_link(tmp_path, capsys):
    script = tmp_path / "runner/bin/microvm-run"
    script.parent.mkdir(parents=True)
    script.touch()
    (tmp_path / "started").symlink_to(script)
    assert launcher.main(["run", str(tmp_path / "started")]) == 5
    assert f"{tmp_path / 'runner'} holds no runner" in capsys.readouterr().err
