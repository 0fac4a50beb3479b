"""Every hypervisor boots real guests, and what was declared is seen in them.

The bed is a host guest of our own (bed/), emulated or not, with nested virtualisation. It takes
QEMU 10 ($MICROVM_TEST_QEMU, or on PATH) and the programs ($MICROVM_TEST_HYPERVISORS, or on PATH).
"""

import json
import os
import shutil
from pathlib import Path

import bed as beds
import pytest
from report import PAGE, Seen

from microvm.hypervisors import hypervisor
from microvm.model.declaration import HypervisorKind

SECONDS = int(os.environ.get("MICROVM_TEST_NESTED_SECONDS", "400"))
"""What a guest has to be up: nested emulation on a busy machine is slow."""
KINDS = [kind.value for kind in HypervisorKind]
MACHINE_ID = "0123456789abcdef0123456789abcdef"
MAC = "02:00:00:00:77:"
SERIAL = "data-7"
pytestmark = [pytest.mark.nested, pytest.mark.timeout(4 * SECONDS)]

SHARES = {
    "cloud-hypervisor": ("files", "locked"),
    "crosvm": ("files", "locked"),
    "qemu": ("files", "nine"),
    "kvmtool": ("nine",),
    "firecracker": (),
}
"""The shares of each: two of virtiofs, one of them read-only, and one of 9p."""
SHARE = {
    "files": '{tag="files",source="shared",mount_point="/srv/files",proto="virtiofs"}',
    "locked": '{tag="locked",source="shared",mount_point="/srv/locked",read_only=true}',
    "nine": '{tag="nine",source="shared",mount_point="/srv/nine",proto="9p"}',
}
WITH_SERIAL = ("qemu", "cloud-hypervisor", "crosvm")


def programs() -> dict[str, str]:
    """Return where the hypervisors' programs are, by hypervisor; qemu is the bed's own."""
    named = os.environ.get("MICROVM_TEST_HYPERVISORS", "/nowhere")
    found = {}
    for kind in KINDS:
        name = hypervisor(kind).program
        here = Path(named, name)
        place = str(here) if here.exists() else shutil.which(name)
        if kind != "qemu" and place:
            found[kind] = place
    return found


@pytest.fixture(scope="session")
def seen():
    found = Seen()
    yield found
    if os.environ.get("MICROVM_TEST_CONFORMANCE") and found.rows:
        PAGE.write_text(found.page())


@pytest.fixture(scope="session")
def bed(microvm_cli, tmp_path_factory, seen):
    """One bed for all tests."""
    if beds.qemu() is None:
        pytest.skip("QEMU 10 is missing: $MICROVM_TEST_QEMU, or qemu-system-x86_64 on PATH")
    found = programs()
    if not found:
        pytest.skip("no hypervisor: $MICROVM_TEST_HYPERVISORS names a directory, or PATH has them")
    place = tmp_path_factory.mktemp("nested")
    for name in ("work", "programs"):
        (place / name).mkdir()
    for program in found.values():
        shutil.copy(program, place / "programs")
    running = beds.start(
        microvm_cli.command(), dict(microvm_cli.env), place / "work", place / "programs",
        microvm_cli.store,
    )  # fmt: skip
    yield running
    running.stop()


@pytest.fixture(params=KINDS)
def kind(request, bed, seen):
    """Each hypervisor whose program there is."""
    name = request.param
    if name != "qemu" and name not in programs():
        pytest.skip(f"{hypervisor(name).program} is missing")
    if name not in seen.versions:
        program = hypervisor(name).program.format(arch="x86_64")
        code = (
            "import sys; from microvm.host.facts import program as find;"
            "found = find(sys.argv[1], None); print('version', *(found.version or ('unknown',)))"
        )
        done = bed(f'python3 -c "{code}" {program}', timeout=SECONDS)
        assert done.status == 0, done.output
        seen.versions[name] = ".".join(done.lines("version")[0].split())
    return name


@pytest.fixture(scope="session")
def guest(tmp_path_factory):
    """The guest's project, with what its declaration names."""
    place = tmp_path_factory.mktemp("inner") / "guest"
    shutil.copytree(beds.HERE / "guest", place)
    (place / "secret.txt").write_text("whisper\n")
    (place / "shared").mkdir()
    return place


@pytest.fixture
def built(microvm_cli, guest, bed):
    """Build the guest for a hypervisor; returns where its runner is in the bed."""

    def build(kind, *settings):
        # The trial of KVM has a time limit that a nested host on a busy machine may miss.
        settings = (*settings, 'accel="kvm"') if kind == "qemu" else settings
        words = [word for setting in settings for word in ("--set", setting)]
        done = microvm_cli("build", str(guest), "--hypervisor", kind, *words, timeout=900)
        assert done.returncode == 0, done.stderr
        return bed.inner(Path(done.stdout.strip()))

    return build


def kernel_for(kind):
    """The cloud kernel has no 9p."""
    return ('system.kernel="generic"',) if "nine" in SHARES[kind] else ()


def devices(kind):
    """Return the settings of a guest with every device that a hypervisor has."""
    serial = f',serial="{SERIAL}"' if kind in WITH_SERIAL else ""
    tap = f'type="tap",id="tap{KINDS.index(kind)}",mac="{MAC}{KINDS.index(kind):02x}"'
    return (
        f'volumes=[{{image="data.img",size=64,mount_point="/srv/data",fs_type="ext4"{serial}}},'
        '{image="fixed.img",size=32,mount_point="/srv/fixed",fs_type="ext4",read_only=true}]',
        f'interfaces=[{{{tap},bridge="br0"}}]',
        f"shares=[{','.join(SHARE[tag] for tag in SHARES[kind])}]",
        f'machine_id="{MACHINE_ID}"',
        'credential_files={conf="secret.txt"}',
        "balloon=true",
        *kernel_for(kind),
    )


def test_a_guest_boots_and_shuts_down(kind, bed, built, seen):
    inner = built(kind)
    state = f"/run/vm/boot-{kind}"
    done = bed(
        f"mkdir -p {state}; python3 {beds.WORK}/driver.py {inner} {state} {SECONDS}",
        timeout=3 * SECONDS,
    )
    assert done.status == 0, done.output
    assert "the guest was up and was shut down" in done.output
    assert "guest is up: Debian" in done.output
    seen.kernel = done.output.partition("kernel ")[2].split()[0]
    seen.add(kind, "boots to its greeting; a clean shutdown at the host's wish")


def test_reboot_starts_the_guest_again_and_power_off_ends_it(kind, bed, built, seen):
    inner = built(kind)
    state = f"/run/vm/again-{kind}"
    driver = f"python3 {beds.WORK}/driver.py {inner} {state} {SECONDS} console"
    done = bed(
        f"mkdir -p {state}; python3 {beds.WORK}/typist.py {3 * SECONDS} {driver}",
        timeout=4 * SECONDS,
    )
    assert done.status == 0, done.output
    assert done.output.count("guest is up: Debian") == 2
    assert "the guest powered off" in done.output
    seen.add(kind, "the console takes what is typed")
    seen.add(kind, "a reboot starts it again, a power-off ends it")


def test_its_own_scripts_start_and_stop_it_and_nothing_of_ours_stays(kind, bed, built, seen):
    inner = built(kind)
    done = bed(
        f"sh {beds.WORK}/outside.sh {inner} /run/vm/outside-{kind} {SECONDS}", timeout=3 * SECONDS
    )
    assert done.status == 0, done.output
    assert "the guest powered off" in done.output
    processes = done.lines("process")
    assert processes, done.output
    assert not [name for name in processes if "python" in name], done.output
    seen.add(kind, "`microvm-launch run` becomes the VMM; `shutdown` from outside")


def test_a_job_sees_every_device(kind, bed, built, seen):
    inner = built(kind, *devices(kind))
    state = f"/run/vm/devices-{kind}"
    done = bed(f"sh {beds.WORK}/job.sh {inner} {state} {SECONDS} 384", timeout=3 * SECONDS)
    assert done.status == 7, done.output
    probe = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert done.lines("input") == ["typed twice "]
    seen.add(kind, "a job: status, output, input")
    _see_volumes(kind, done, probe, seen)
    _see_network(kind, probe, seen)
    _see_shares(kind, done, probe, seen)
    assert probe["credentials"]["conf"] == "s:whisper"
    seen.add(kind, "credential_files")
    assert probe["machine_id"] == f"s:{MACHINE_ID}"
    seen.add(kind, "machine_id")
    before, now = map(int, done.lines("balloon")[0].split())
    assert before - now >= 65536, done.output
    seen.add(kind, "balloon takes memory")
    assert f"link tap{KINDS.index(kind)}" not in done.output, "the tap was left behind"


def _see_volumes(kind, done, probe, seen):
    mounts = {mount["at"]: mount for mount in probe["mounts"]}
    assert done.lines("data") == ["kept"]
    assert mounts["/srv/data"]["type"] == "ext4"
    seen.add(kind, "a volume, found and mounted, written")
    assert done.lines("fixed") == ["refused"]
    fixed = probe["disks"].get(Path(mounts["/srv/fixed"]["from"]).name)
    assert fixed["read_only"] == 1, probe["disks"]
    assert fixed["size"] == 32 << 20
    seen.add(kind, "a read-only volume")
    disk = probe["disks"][Path(mounts["/srv/data"]["from"]).name]
    assert disk["read_only"] == 0
    if kind in WITH_SERIAL:
        assert disk["serial"] == f"s:{SERIAL}"
    seen.add(kind, "a volume's serial", "seen" if kind in WITH_SERIAL else "refused")


def _see_network(kind, probe, seen):
    address = f"{MAC}{KINDS.index(kind):02x}"
    assert [nic for nic in probe["nics"].values() if nic["mac"] == address], probe["nics"]
    assert any(found.startswith("10.77.0.") for found in probe["addresses"]), probe
    seen.add(kind, "a tap on a bridge, with its MAC and an address by DHCP")


def _see_shares(kind, done, probe, seen):
    types = {mount["at"]: mount["type"] for mount in probe["mounts"]}
    for tag in SHARES[kind]:
        assert types[f"/srv/{tag}"] == ("9p" if tag == "nine" else "virtiofs")
        written = "refused" if tag == "locked" else "written"
        assert done.lines(tag) == ["read hello", written], done.output
        assert (f"host from-{tag}" in done.output) == (written == "written")
    for tag, what in (
        ("files", "a virtiofs share"), ("locked", "a read-only virtiofs share"),
        ("nine", "a 9p share"),
    ):  # fmt: skip
        if tag in SHARES[kind]:
            seen.add(kind, what)
        elif kind == "firecracker" or tag == "nine" or kind == "kvmtool":
            seen.add(kind, what, "refused")
