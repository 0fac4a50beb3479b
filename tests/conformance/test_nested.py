"""Every hypervisor boots real guests, and what was declared is seen in them.

The bed is a host guest of our own (bed/), emulated or not, with nested virtualisation. It takes
QEMU 10 ($MICROVM_TEST_QEMU, or on PATH) and the programs ($MICROVM_TEST_HYPERVISORS, or on PATH).
$MICROVM_TEST_CONFORMANCE asks for the long form and its page; $MICROVM_TEST_REPEAT for more boots.
"""

import hashlib
import json
from pathlib import Path

import bed as beds
import pytest
from bed import SECONDS, long_form
from declared import (
    BRIDGED,
    DIRECTORIES,
    KINDS,
    MACHINE_ID,
    SERIAL,
    VIRTIOFS,
    address,
    devices,
    has,
    is_there,
    shares,
    users_of,
)  # fmt: skip
from report import ACL, BOOTS, CACHE, NINE, TRANSLATED

from microvm.hypervisors.features import Feature

pytestmark = [pytest.mark.nested, pytest.mark.timeout(4 * SECONDS)]


def test_a_job_sees_every_device(kind, bed, built, seen):
    inner = built(kind, "devices", *devices(kind))
    state = f"/run/vm/devices-{kind}"
    done = bed(
        f"sh {beds.WORK}/job.sh {inner} {state} {SECONDS} 384 {' '.join(DIRECTORIES)}",
        timeout=3 * SECONDS,
    )
    assert done.status == 7, done.output
    assert "accelerator kvm" in done.output
    probe = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert done.lines("input") == ["typed twice "]
    _see_volumes(kind, done, probe, seen)
    assert [nic for nic in probe["nics"].values() if nic["mac"] == address(kind)], probe["nics"]
    assert any(found.startswith(BRIDGED) for found in probe["addresses"]), probe
    seen.add(kind, "a tap that joins a bridge: its MAC, an address by DHCP")
    seen.add(kind, Feature.NET_TAP)
    if users_of(kind):
        assert {"10.0.2.15", "10.0.3.15"} <= {one.partition("/")[0] for one in probe["addresses"]}
        seen.add(kind, Feature.NET_USER_MORE)
    if has(kind, Feature.BALLOON_KEEPS):
        assert done.lines("gives") == ["0"], done.output
        seen.add(kind, Feature.BALLOON_KEEPS)
    _see_shares(kind, done, probe, seen)
    if kind == "qemu":
        _see_owners_of_9p(done, seen)
    if has(kind, Feature.SHARE_VIRTIOFS):
        _see_options_of_virtiofs(kind, done, seen)
    if kind == "firecracker":
        # The other half of it is in the extras, where Async is left as it is.
        assert done.lines("ring") == [], done.output
    assert probe["credentials"]["conf"] == "s:whisper"
    seen.add(kind, Feature.CREDENTIALS)
    assert probe["machine_id"] == f"s:{MACHINE_ID}"
    seen.add(kind, "machine_id")
    if is_there(kind, what := "the UUID of the firmware (SMBIOS)"):
        assert probe["uuid"].replace("-", "") == f"s:{MACHINE_ID}"
        seen.add(kind, what)
    before, now = map(int, done.lines("balloon")[0].split())
    assert before - now >= 65536, done.output
    seen.add(kind, Feature.BALLOON)
    assert f"link tap{KINDS.index(kind)}" not in done.output, "the tap was left behind"


def _see_volumes(kind, done, probe, seen):
    mounts = {mount["at"]: mount for mount in probe["mounts"]}
    assert done.lines("data") == ["kept"]
    assert mounts["/srv/data"]["type"] == "ext4"
    seen.add(kind, "a volume: found, mounted, written")
    assert done.lines("fixed") == ["refused"]
    fixed = probe["disks"].get(Path(mounts["/srv/fixed"]["from"]).name)
    assert fixed["read_only"] == 1, probe["disks"]
    assert fixed["size"] == 32 << 20
    seen.add(kind, "a read-only volume")
    disk = probe["disks"][Path(mounts["/srv/data"]["from"]).name]
    assert disk["read_only"] == 0
    if has(kind, Feature.SERIAL):
        assert disk["serial"] == f"s:{SERIAL}"
        seen.add(kind, Feature.SERIAL)


def _see_shares(kind, done, probe, seen):
    types = {mount["at"]: mount["type"] for mount in probe["mounts"]}
    for tag in shares(kind):
        assert types[f"/srv/{tag}"] == ("virtiofs" if tag in VIRTIOFS else "9p")
    found = {
        "files": Feature.SHARE_VIRTIOFS, "locked": "a read-only virtiofs share",
        "nine": Feature.SHARE_9P, "closed": Feature.READ_ONLY_9P,
    }  # fmt: skip
    for tag in found.keys() & shares(kind):
        written = "refused" if tag in ("locked", "closed") else "written"
        assert done.lines(tag) == ["read hello", written], done.output
        assert (f"host from-{tag}" in done.output) == (written == "written")
        seen.add(kind, found[tag])


def _see_owners_of_9p(done, seen):
    """In the host's files, beside them, or on them, whoever owns them there."""
    owned = "1234:4321 640"
    assert sorted(done.lines("owned")) == [
        f"{tag} {owned}" for tag in ("beside", "mapped", "nine", "passed")
    ]
    kept = dict(line.split(" ", 1) for line in done.lines("kept"))
    assert kept["shared/owned"] == kept["passed/owned"] == owned, done.output
    assert kept["mapped/owned"] == kept["beside/owned"] == "0:0 600", done.output
    assert f"mapped/owned user.virtfs.uid {(1234).to_bytes(4, 'little').hex()}" in done.lines(
        "attribute"
    )
    assert "virtfs.uid=1234" in done.lines("beside")
    seen.add("qemu", NINE)
    seen.add("qemu", Feature.MAPPED_9P)


def _see_options_of_virtiofs(kind, done, seen):
    assert done.lines("moved") == ["1000:1000 made"], done.output
    assert "moved/made 4002:5002 644" in done.lines("kept"), done.output
    seen.add(kind, TRANSLATED)
    assert done.lines("secret") == ["refused", "told", "refused"], done.output
    assert [
        line
        for line in done.lines("attribute")
        if line.startswith("shared/secret system.posix_acl")
    ], done.output
    seen.add(kind, ACL)
    # Fresh within a second; nothing; what files hold; everything.
    old, new = (len(word) + 1 for word in ("before", "afterwards"))
    assert done.lines("then") == [
        f"files {new} afterwards", f"locked {old} before",
        f"moved {old} afterwards", f"acl {new} afterwards",
    ], done.output  # fmt: skip
    seen.add(kind, CACHE)


@long_form
def test_a_guest_boots_and_shuts_down_again_and_again(kind, boots, seen):
    all_boots, noted, ended = boots
    runs = all_boots[kind]
    good = [
        run
        for run in runs
        if run["status"] == 0 and run["up_s"] and run["clean"]
        and "the guest was up and was shut down" in run["said"]
    ]  # fmt: skip
    seen.add(kind, BOOTS, f"{len(good)} of {len(runs)}")
    kernel = runs[0]["said"].partition("kernel ")[2].split("\n")[0].strip()
    seen.timed(kind, kernel, [run["up_s"] for run in good if not run["first"]], ended)
    assert len(good) == len(runs), [run for run in runs if run not in good]
    assert noted[kind] == len(runs)


@long_form
def test_reboot_starts_the_guest_again_and_power_off_ends_it(kind, bed, built, seen):
    inner = built(kind, "devices")
    state = f"/run/vm/again-{kind}"
    driver = f"python3 {beds.WORK}/driver.py {inner} {state} {SECONDS} console"
    done = bed(
        f"mkdir -p {state}; python3 {beds.WORK}/typist.py {3 * SECONDS} {driver}",
        timeout=4 * SECONDS,
    )
    assert done.status == 0, done.output
    assert done.output.count(" is up: Debian") == 2
    assert "the guest powered off" in done.output
    seen.add(kind, "the console takes what is typed")
    seen.add(kind, "a reboot starts it again, a power-off ends it")


@long_form
def test_machine_microvm_of_qemu_has_every_device_that_needs_no_pci(bed, built):
    settings = (
        "vcpu=2",
        'qemu.machine="microvm"',
        'volumes=[{image="data.img",size=64,mount_point="/srv/data",serial="S"}]',
        'interfaces=[{type="tap",id="flat0",bridge="br0"},{type="user",id="flat1"}]',
        "balloon=true",
        "vsock={cid=7100}",
        'credential_files={conf="secret.txt"}',
    )
    inner = built("qemu", "devices", *settings)
    state = "/run/vm/flat"
    job = "probe; echo pci $(ls /sys/bus/pci/devices 2>/dev/null | wc -l)"
    done = bed(
        f"mkdir -p {state}; cd {state}; echo whisper >secret.txt;"
        f" python3 {beds.WORK}/driver.py {inner} {state} {SECONDS} -- sh -c '{job}'",
        timeout=3 * SECONDS,
    )
    assert done.status == 0, done.output
    assert "accelerator kvm" in done.output
    probe = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert (probe["cpus"], probe["cid"]) == (2, 7100)
    assert sorted(nic["queues"] for nic in probe["nics"].values()) == [1, 2], probe
    assert "s:S" in [disk["serial"] for disk in probe["disks"].values()], probe
    assert "virtio_balloon" in probe["virtio"].values(), probe
    assert probe["credentials"]["conf"] == "s:whisper"
    assert done.lines("pci") == ["0"], done.output


@long_form
def test_its_own_scripts_start_and_stop_it_and_nothing_of_ours_stays(kind, bed, built, seen):
    inner = built(kind, "devices")
    done = bed(
        f"sh {beds.WORK}/outside.sh {inner} /run/vm/outside-{kind} {SECONDS}", timeout=3 * SECONDS
    )
    assert done.status == 0, done.output
    assert "the guest powered off" in done.output
    processes = done.lines("process")
    assert processes, done.output
    assert not [name for name in processes if "python" in name], done.output
    seen.add(
        kind,
        "`bin/microvm-run` becomes the VMM, nothing of ours stays; `bin/microvm-shutdown` ends it",
    )


@long_form
def test_a_job_passes_every_byte(kind, bed, built, seen):
    _pass_bytes(bed, built(kind, "devices"), f"/run/vm/bytes-{kind}", 1 << 20)
    seen.add(kind, "a job: exit status, 1 MiB of every byte both ways")


@long_form
def test_a_job_of_kvmtool_has_a_serial_line_where_the_host_has_no_vsock(bed, built):
    inner = built("kvmtool", "devices")
    assert bed("mv /dev/vhost-vsock /dev/hidden", timeout=SECONDS).status == 0
    try:
        _pass_bytes(bed, inner, "/run/vm/line", 1 << 16)
    finally:
        bed("mv /dev/hidden /dev/vhost-vsock", timeout=SECONDS)


def _pass_bytes(bed, inner, state, count):
    """Have a job send back every byte of its input."""
    driver = f"python3 {beds.WORK}/driver.py {inner} {state} {SECONDS}"
    code = f"import sys; sys.stdout.buffer.write(bytes(range(256)) * {count // 256})"
    job = "sh -c 'cat; echo apart >&2; exit 41'"
    done = bed(
        f"mkdir -p {state}; cd {state}; python3 -c '{code}' >in; {driver} -- {job} <in >out 2>err;"
        " echo status $?; echo sum $(sha256sum <out); sed 's/^/said /' err",
        timeout=3 * SECONDS,
    )
    assert done.lines("status") == ["41"], done.output
    whole = hashlib.sha256(bytes(range(256)) * (count // 256)).hexdigest()
    assert done.lines("sum") == [f"{whole} -"], done.output
    assert "apart" in done.lines("said")


@long_form
def test_a_panic_ends_the_run_and_is_told(kind, bed, built, seen):
    inner = built(kind, "devices")
    state = f"/run/vm/panic-{kind}"
    done = bed(
        f"mkdir -p {state}; cd {state}; python3 {beds.WORK}/driver.py {inner} {state} {SECONDS}"
        " -- sh -c 'echo c >/proc/sysrq-trigger'",
        timeout=3 * SECONDS,
    )
    assert done.status == 125, done.output
    assert "the guest's kernel panicked: sysrq triggered crash" in done.output, done.output
    seen.add(kind, "a kernel that panics ends the run, and its words are told")


PLACES = "stat -c '%u:%g %a' /usr/bin/su /var/lib/systemd/network"
NO_DISK = "ls /sys/block | grep -c ^vd; grep -o 'microvm.layers=[a-z0-9]*' /proc/cmdline"
EXAMPLES = {
    "hello": ("hostname", "hello"),
    "build-box": ("cd /src && make >&2 && ./hello", "built in a MicroVM"),
    "shares": ("ls /virtiofs /9p", "from-the-host"),
    "web": ("systemctl is-active nginx && cat /var/www/html/index.html", "Hello from a MicroVM"),
    **{
        f"imageless-{proto}": (
            f"{PLACES}; {NO_DISK}",
            f"0:0 4755\n998:998 755\n0\nmicrovm.layers={proto}",
        )
        for proto in ("virtiofs", "9p")
    },
}
"""What each example is asked to do, and what it says then."""
EVERYWHERE = ("hello",)
"""Examples that no hypervisor may refuse."""
ROOTS = {"imageless-virtiofs": Feature.ROOT_SHARED, "imageless-9p": Feature.ROOT_9P}


@long_form
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_or_says_what_to_use(kind, example, bed, built, microvm_cli, seen):
    project = beds.EXAMPLES / example.partition("-virtiofs")[0].partition("-9p")[0]
    row = f"`examples#{example}`"
    checked = microvm_cli("check", "--hypervisor", kind, f"{project}#{example}")
    if checked.returncode:
        assert example not in EVERYWHERE, checked.stderr
        for line in checked.stderr.splitlines()[1:]:
            assert "does not support" in line or "; or use qemu" in line, checked.stderr
        seen.add(kind, row, "refused")
        return
    inner = built(kind, example, of=project)
    state, given = f"/run/vm/{example}-{kind}", bed.give(project)
    job, said = EXAMPLES[example]
    done = bed(
        f"mkdir -p {state}; cp -r {given}/. {state};"
        f' python3 {beds.WORK}/driver.py {inner} {state} {SECONDS} -- sh -c "{job}"',
        timeout=3 * SECONDS,
    )
    assert done.status == 0, done.output
    assert said in done.output, done.output
    seen.add(kind, row, "runs")
    if example in ROOTS:
        seen.add(kind, ROOTS[example])


@long_form
def test_the_three_of_the_python_example_run(kind, bed, built, seen):
    # One after the other: several at once take the whole bed down.
    project = beds.EXAMPLES / "python"
    for number in (1, 2, 3):
        name = f"python-{number}"
        inner, state = built(kind, name, of=project), f"/run/vm/{name}-{kind}"
        done = bed(
            f"mkdir -p {state};"
            f" python3 {beds.WORK}/driver.py {inner} {state} {SECONDS} -- cat /etc/motd",
            timeout=3 * SECONDS,
        )
        assert done.status == 0, done.output
        assert f"This is number {number} of three." in done.output.splitlines(), done.output
        seen.add(kind, f"`examples#{name}`", "runs")
