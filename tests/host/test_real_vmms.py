"""The real programs take our plans and obey our controls.

No guest needs to run for that: whatever /dev/kvm makes of its virtual CPUs, the VMM answers. The
programs are found on PATH or in the directory that $MICROVM_TEST_HYPERVISORS names.
"""

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from microvm.errors import ApiError, StateError, Unreachable
from microvm.host import facts as host_facts
from microvm.host import holders, image_locks, linux, network
from microvm.hypervisors import hypervisor
from microvm.launch import helpers, planning, starting, taps
from microvm.model.declaration import MicroVM
from microvm.model.devices import Interface, MacvtapOptions, Share, Volume, Vsock
from microvm.model.facts import Accelerator, Facts

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="/dev/kvm can't be opened"),
]
KINDS = ("cloud-hypervisor", "firecracker")
VOLUME = Volume(image="odd,name.img", size=8)
ALIKE = {
    "vcpu": 2, "mem": 256, "balloon": True, "initial_balloon_mem": 64, "hotplug_mem": 256,
    "vsock": Vsock(cid=0xFFFFFFFE), "credential_files": {"key": "/etc/hostname"},
    "volumes": (VOLUME,),
}  # fmt: skip
MORE = {
    "cloud-hypervisor": {
        "hotplugged_mem": 128,
        "volumes": (VOLUME, Volume(image="b.img", size=8, serial="SERIAL", direct=True)),
    },
    "firecracker": {},
}


def place(name):
    named = Path(os.environ.get("MICROVM_TEST_HYPERVISORS", "/nowhere"), name)
    return str(named) if named.exists() else shutil.which(name)


def program(name):
    """Return a program, or skip with its name."""
    found = place(name)
    if found is None:
        pytest.skip(f"{name}, which Debian has no package of, is missing")
    return host_facts.program(name, found)


@pytest.fixture(scope="module")
def built(microvm_cli):
    """The runner of a guest whose kernel is there uncompressed."""
    if not any(map(place, KINDS)):
        pytest.skip(f"none of {', '.join(KINDS)} is installed")
    done = microvm_cli("build", "examples#hello", "--hypervisor", "firecracker", timeout=500)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def planned(built, tmp_path):
    """Plan a declaration on this guest, in the test's own state directory."""

    def plan(kind, **fields):
        backend = hypervisor(kind)
        declared = MicroVM(hypervisor=kind, **fields)
        programs = {backend.program: program(backend.program)}
        if declared.shares:
            programs["virtiofsd"] = program("virtiofsd")
        known = Facts(
            accelerator=Accelerator(kind="kvm", reason=""), landlock=linux.landlock_abi(),
            programs=programs, state_dir=str(tmp_path), project_dir=str(tmp_path),
            store_dir=str(built.parent), machine_id="1" * 32, root=os.geteuid() == 0,
        )  # fmt: skip
        assert backend.check(declared, known) == []
        return backend.plan(replace(planning.load_runner(built), microvm=declared), known)

    return plan


@pytest.fixture
def started(tmp_path):
    """Start a VMM by its plan and wait for its control socket."""

    @contextmanager
    def start(plan, *descriptors):
        for descriptor in starting.prepare(plan, tmp_path, reset_root=False):
            os.close(descriptor)
        with (
            (tmp_path / "said").open("wb") as said,
            subprocess.Popen(
                plan.argv, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                pass_fds=descriptors,
            ) as process,
        ):  # fmt: skip
            try:
                yield reached(plan, process, tmp_path), process
            finally:
                process.kill()

    return start


def reached(plan, process, directory):
    """Return a handle on a VMM as soon as it listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return hypervisor(plan.hypervisor).control(
                directory / plan.control, timeout_s=30, program=plan.argv[0]
            )
        except Unreachable:
            assert process.poll() is None, (directory / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)


def pause_once_it_runs(running):
    """cloud-hypervisor answers before its VM runs."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return running.pause()
        except ApiError as error:
            assert "VM is not running" in error.message
            assert time.monotonic() < deadline
            time.sleep(0.05)


def ends(running, process):
    running.quit()
    return process.wait(30) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_vmm_starts_from_a_minimal_plan_and_obeys(kind, planned, started):
    with started(planned(kind)) as (running, process):
        pause_once_it_runs(running)
        for step in (running.pause, running.resume, running.resume):
            step()
        running.shut_down(power_button=True)
        assert process.poll() is None
        assert ends(running, process)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vmm_takes_every_device_and_requests_for_memory(kind, planned, started, tmp_path):
    with started(planned(kind, **{**ALIKE, **MORE[kind]})) as (running, process):
        for size in (128, 512, 512, 256):
            if kind == "cloud-hypervisor":
                running.set_memory(size)
                continue
            with pytest.raises(ApiError, match="not activ"):  # there is no guest with a driver
                running.set_memory(size)
        with pytest.raises(ApiError, match="1 to 512 MiB, not 513"):
            running.set_memory(513)
        assert (tmp_path / "vsock.sock").is_socket()
        assert ends(running, process)
    assert (tmp_path / "credentials.img").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="taps need root")
@pytest.mark.parametrize("kind", KINDS)
def test_a_vmm_takes_its_taps_and_nobody_else_does(kind, planned, started, tmp_path, tool):
    interfaces = [Interface(type="tap", id=f"mvt{os.getpid() % 10000}a")]
    ip, link = tool("ip"), f"mvt{os.getpid() % 10000}l"
    if kind == "cloud-hypervisor":
        subprocess.run([ip, "link", "add", link, "type", "veth"], check=True)
        subprocess.run([ip, "link", "set", link, "up"], check=True)
        options = MacvtapOptions(link=link)
        interfaces.append(Interface(type="macvtap", id=f"{link}m", macvtap=options))
    try:
        plan = planned(kind, vcpu=2, interfaces=tuple(interfaces))
        with (
            taps.held(plan, tmp_path),
            taps.opened(plan) as numbers,
            started(plan, *numbers) as (running, process),
        ):
            deadline = time.monotonic() + 60  # firecracker listens before it opens its devices
            while not network.in_use(interfaces[0].id):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(StateError, match="in use by another program"):
                taps.up(plan, tmp_path)
            assert ends(running, process)
        assert [network.index(interface.id) for interface in interfaces] == [None] * len(interfaces)
    finally:
        if kind == "cloud-hypervisor":
            subprocess.run([ip, "link", "delete", link], check=True)


CONNECTED = "Client connected|Received vhost-user socket connection"
"""What virtiofsd says then, and what the old one in C does."""


def test_cloud_hypervisor_meets_virtiofsd(planned, started, tmp_path):
    (tmp_path / "shared").mkdir()
    plan = planned(
        "cloud-hypervisor",
        shares=(Share(tag="s", source="shared", mount_point="/s", read_only=True),),
    )
    with helpers.running(plan, tmp_path) as [helper], started(plan) as (running, process):
        assert helper.fate() is None
        deadline = time.monotonic() + 60
        while not re.search(CONNECTED, (tmp_path / "virtiofsd-s.log").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ends(running, process)
        assert helper.process.wait(10) == 0, "it ends with the VMM"


@pytest.mark.parametrize("kind", [*KINDS, "crosvm"])
def test_a_killed_vmm_held_its_disk_and_is_no_obstacle_to_the_next(kind, planned, tmp_path):
    vsock = {} if kind == "crosvm" else {"vsock": Vsock(cid=77)}
    plan = planned(kind, volumes=(VOLUME,), **vsock)
    for _ in range(3):
        held = starting.prepare(plan, tmp_path, reset_root=False)
        with (
            (tmp_path / "said").open("wb") as said,
            subprocess.Popen(
                plan.argv, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                pass_fds=held,
            ) as process,
        ):  # fmt: skip
            for number in held:
                os.close(number)
            try:
                reached(plan, process, tmp_path)
                deadline = time.monotonic() + 60
                while not all((tmp_path / name).exists() for name in plan.sockets):
                    assert time.monotonic() < deadline, (tmp_path / "said").read_text()
                    time.sleep(0.05)
                with pytest.raises(StateError, match=f"in use by .* process {process.pid}"):
                    image_locks.lock(tmp_path / VOLUME.image, read_only=True)
            finally:
                process.kill()
        # At once: sockets and lock files are as it left them.


def test_cloud_hypervisors_read_what_qemu_reads(planned, tmp_path, tool):
    """Each takes locks of its own; on what all of them only read, no one keeps another out."""
    volume = Volume(image="odd,name.img", size=8)
    plan = planned("cloud-hypervisor", volumes=(volume,))
    for number in starting.prepare(plan, tmp_path, reset_root=False):
        os.close(number)
    plan = planned("cloud-hypervisor", volumes=(replace(volume, read_only=True),))
    held = starting.prepare(plan, tmp_path, reset_root=False)
    said = tmp_path / "said"
    with (
        said.open("wb") as file,
        subprocess.Popen(
            plan.argv,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=held,
        ) as process,
    ):
        try:
            reached(plan, process, tmp_path)
            deadline = time.monotonic() + 30
            while not holders.is_locked(tmp_path / volume.image):
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.05)
            second = image_locks.lock(tmp_path / volume.image, read_only=True)
            os.close(second)
            qemu = subprocess.run(
                [
                    tool("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg", "-nodefaults",
                    "-display", "none", "-S", "-monitor", "stdio", "-drive",
                    "if=none,id=a,format=raw,file.driver=file,file.filename=odd,,name.img,"
                    "read-only=on,file.locking=off",
                    "-device", "virtio-blk,drive=a",
                ],
                cwd=tmp_path, input=b"quit\n", capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            assert qemu.returncode == 0, qemu.stderr
        finally:
            process.kill()
            for number in held:
                os.close(number)
