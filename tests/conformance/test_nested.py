"""Every hypervisor boots real guests, and what was declared is seen in them.

The bed is a host guest of our own (bed/), emulated or not, with nested virtualisation. It takes
QEMU 10 ($MICROVM_TEST_QEMU, or on PATH) and the programs ($MICROVM_TEST_HYPERVISORS, or on PATH).
$MICROVM_TEST_CONFORMANCE asks for the long form and its page; $MICROVM_TEST_REPEAT for more boots.
"""

import hashlib
import json
import os
import pwd
import shutil
from pathlib import Path

import bed as beds
import pytest
from report import BOOTS, NOT_THERE, PAGE, Seen

from microvm.hypervisors import hypervisor
from microvm.hypervisors.crosvm import NO_MSI
from microvm.hypervisors.features import Feature
from microvm.model.declaration import HypervisorKind

SECONDS = int(os.environ.get("MICROVM_TEST_NESTED_SECONDS", "400"))
"""What a guest has to be up: nested emulation on a busy machine is slow."""
REPEAT = int(os.environ.get("MICROVM_TEST_REPEAT", "1"))
KINDS = [kind.value for kind in HypervisorKind]
MACHINE_ID = "0123456789abcdef0123456789abcdef"
MAC = "02:00:00:00:77:"
SERIAL = "data-7"
PORT = 8100
pytestmark = [pytest.mark.nested, pytest.mark.timeout(4 * SECONDS)]
long_form = pytest.mark.skipif(
    not os.environ.get("MICROVM_TEST_CONFORMANCE"), reason="the long form: make test-nested"
)

SHARES = {
    "files": '{tag="files",source="shared",mount_point="/srv/files",proto="virtiofs"}',
    "locked": '{tag="locked",source="shared",mount_point="/srv/locked",read_only=true}',
    "nine": '{tag="nine",source="shared",mount_point="/srv/nine",proto="9p"}',
}
GIFT, PEN = "0000:00:1e.0", "vendorid=0x0627,productid=0x0001"
"""The NVMe disk and the USB tablet that the bed can give away."""
BRIDGED, OF_USER = "10.77.0.", ("10.0.2.", "192.168.33.")
"""How addresses begin that a guest gets by DHCP: on br0 of the bed, on user networking."""


def has(kind, feature):
    return hypervisor(kind).support(feature).available


def shares(kind):
    """Return the shares of a guest: two of virtiofs, one of them read-only, and one of 9p."""
    of_virtiofs = ("files", "locked") if has(kind, Feature.SHARE_VIRTIOFS) else ()
    return (*of_virtiofs, *(("nine",) if has(kind, Feature.SHARE_9P) else ()))


def is_there(kind, what):
    """Return whether a hypervisor has what no declaration asks for."""
    return kind not in NOT_THERE.get(what, ())


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
def seen(request):
    key = "microvm/conformance"
    found = Seen(request.config.cache.get(key, {}))
    yield found
    found.merge(request.config.cache.get(key, {}))
    request.config.cache.set(key, found.kinds)
    if os.environ.get("MICROVM_TEST_CONFORMANCE") and found.whole:
        PAGE.write_text(found.page())


@pytest.fixture(scope="session")
def bed(microvm_cli, tmp_path_factory):
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


@pytest.fixture(scope="session")
def versions(bed):
    """The version of each hypervisor, as the product reads it."""
    found = {}
    for kind in ("qemu", *programs()):
        program = hypervisor(kind).program.format(arch="x86_64")
        code = (
            "import sys; from microvm.host.facts import program as find;"
            "found = find(sys.argv[1], None); print('version', *(found.version or ('unknown',)))"
        )
        done = bed(f'python3 -c "{code}" {program}', timeout=SECONDS)
        assert done.status == 0, done.output
        found[kind] = ".".join(done.lines("version")[0].split())
    return found


@pytest.fixture(params=KINDS)
def kind(request, versions, seen):
    """Each hypervisor whose program there is."""
    name = request.param
    if name not in versions:
        pytest.skip(f"{hypervisor(name).program} is missing")
    example = request.node.callspec.params.get("example", "")
    seen.begin(name, versions[name], f"{request.node.originalname}{example}")
    return name


@pytest.fixture(scope="session")
def guest(tmp_path_factory):
    """The guests' project, with what its declarations name."""
    place = tmp_path_factory.mktemp("inner") / "guest"
    shutil.copytree(beds.HERE / "guest", place)
    (place / "secret.txt").write_text("whisper\n")
    (place / "shared").mkdir()
    return place


@pytest.fixture(scope="session")
def built(microvm_cli, guest, bed):
    """Build a guest for a hypervisor; returns where its runner is in the bed."""

    def build(kind, name, *settings, of=guest):
        words = [word for setting in settings for word in ("--set", setting)]
        done = microvm_cli("build", f"{of}#{name}", "--hypervisor", kind, *words, timeout=900)
        assert done.returncode == 0, done.stderr
        return bed.inner(Path(done.stdout.strip()))

    return build


def kernel_for(kind):
    """The cloud kernel has no 9p."""
    return ('system.kernel="generic"',) if has(kind, Feature.SHARE_9P) else ()


def address(kind):
    return f"{MAC}{KINDS.index(kind):02x}"


def devices(kind):
    """Return the settings of a guest with every common device that a hypervisor has."""
    serial = f',serial="{SERIAL}"' if has(kind, Feature.SERIAL) else ""
    tap = f'type="tap",id="tap{KINDS.index(kind)}",mac="{address(kind)}"'
    return (
        f'volumes=[{{image="data.img",size=64,mount_point="/srv/data",fs_type="ext4"{serial}}},'
        '{image="fixed.img",size=32,mount_point="/srv/fixed",fs_type="ext4",read_only=true}]',
        f'interfaces=[{{{tap},bridge="br0"}}]',
        f"shares=[{','.join(SHARES[tag] for tag in shares(kind))}]",
        f'machine_id="{MACHINE_ID}"',
        'credential_files={conf="secret.txt"}',
        "balloon=true",
        *kernel_for(kind),
    )


def test_a_job_sees_every_device(kind, bed, built, seen):
    inner = built(kind, "devices", *devices(kind))
    state = f"/run/vm/devices-{kind}"
    done = bed(f"sh {beds.WORK}/job.sh {inner} {state} {SECONDS} 384", timeout=3 * SECONDS)
    assert done.status == 7, done.output
    assert "accelerator kvm" in done.output
    probe = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert done.lines("input") == ["typed twice "]
    _see_volumes(kind, done, probe, seen)
    assert [nic for nic in probe["nics"].values() if nic["mac"] == address(kind)], probe["nics"]
    assert any(found.startswith(BRIDGED) for found in probe["addresses"]), probe
    seen.add(kind, "a tap that joins a bridge: its MAC, an address by DHCP")
    seen.add(kind, Feature.NET_TAP)
    _see_shares(kind, done, probe, seen)
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
        assert types[f"/srv/{tag}"] == ("9p" if tag == "nine" else "virtiofs")
        written = "refused" if tag == "locked" else "written"
        assert done.lines(tag) == ["read hello", written], done.output
        assert (f"host from-{tag}" in done.output) == (written == "written")
        feature = Feature.SHARE_9P if tag == "nine" else Feature.SHARE_VIRTIOFS
        seen.add(kind, "a read-only virtiofs share" if tag == "locked" else feature)


@pytest.fixture(scope="session")
def boots(request, bed, built, versions):
    """Boot `hello` on each hypervisor in turns, so that a busy moment is not one's alone."""
    kinds = [
        item.callspec.params["kind"]
        for item in request.session.items
        if "boots" in item.fixturenames and item.callspec.params["kind"] in versions
    ]
    found = {kind: [] for kind in kinds}
    noted = {}
    inner = {kind: built(kind, "hello") for kind in kinds}
    for _ in range(REPEAT):
        for kind in kinds:
            state = f"/run/vm/hello-{kind}"
            driver = f"python3 {beds.WORK}/driver.py {inner[kind]} {state} {SECONDS}"
            done = bed(
                f"mkdir -p {state}; cd {state}; python3 {beds.WORK}/repeat.py {driver}",
                timeout=3 * SECONDS,
            )
            assert done.status == 0, done.output
            found[kind].append(json.loads(done.output.splitlines()[0]))
            noted[kind] = int(done.lines("noted")[0])
    return found, noted


@long_form
def test_a_guest_boots_and_shuts_down_again_and_again(kind, boots, seen):
    all_boots, noted = boots
    runs = all_boots[kind]
    good = [
        run
        for run in runs
        if run["status"] == 0 and run["up_s"] and run["clean"]
        and "the guest was up and was shut down" in run["said"]
    ]  # fmt: skip
    seen.add(kind, BOOTS, f"{len(good)} of {len(runs)}")
    kernel = runs[0]["said"].partition("kernel ")[2].split("\n")[0].strip()
    seen.timed(kind, kernel, [run["up_s"] for run in good])
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


@pytest.fixture
def gift(bed):
    """Hand the NVMe disk of the bed to vfio-pci."""
    place = f"/sys/bus/pci/devices/{GIFT}"
    done = bed(
        f"modprobe vfio-pci; echo vfio-pci >{place}/driver_override;"
        f" echo {GIFT} >{place}/driver/unbind; echo {GIFT} >/sys/bus/pci/drivers_probe;"
        f" basename $(readlink {place}/driver)",
        timeout=SECONDS,
    )
    assert done.output.splitlines()[-1] == "vfio-pci", done.output


@long_form
@pytest.mark.parametrize("kind", [k for k in KINDS if has(k, Feature.PCI)], indirect=True)
def test_devices_of_the_host_reach_the_guest(kind, bed, built, seen, gift):
    passed = [f'{{bus="pci",path="{GIFT}"}}']
    settings = []
    if has(kind, Feature.USB):
        passed.append(f'{{bus="usb",path="{PEN}"}}')
    if has(kind, Feature.ROOT_PORTS):
        settings.append('qemu.pcie_root_ports=[{id="port1"}]')
    if has(kind, Feature.CPU_MODEL):
        settings.append('cpu="qemu64"')
    if kind == "crosvm":
        settings.append(f'kernel_params=["{NO_MSI}"]')
    inner = built(kind, "devices", f"devices=[{','.join(passed)}]", *settings)
    state = f"/run/vm/gift-{kind}"
    done = bed(
        f"mkdir -p {state}; cd {state}; python3 {beds.WORK}/driver.py {inner} {state} {SECONDS}"
        f' -- sh -c "$(cat {beds.WORK}/gift.sh)"',
        timeout=3 * SECONDS,
    )
    assert done.status == 0, done.output
    assert [word.strip() for word in done.lines("disk")] == ["gift"], done.output
    assert done.lines("read") == ["4194304"], done.output
    seen.add(kind, Feature.PCI)
    if has(kind, Feature.USB):
        assert done.lines("usb") == ["pen"], done.output
        seen.add(kind, Feature.USB)
    if has(kind, Feature.ROOT_PORTS):
        assert "0x1b36:0x000c" in done.lines("pci"), done.output
        seen.add(kind, Feature.ROOT_PORTS)
    if has(kind, Feature.CPU_MODEL):
        assert done.lines("cpu")[0].startswith("QEMU Virtual CPU"), done.output
        seen.add(kind, Feature.CPU_MODEL)


EXAMPLES = {
    "hello": ("hostname", "hello"),
    "python-1": ("cat /etc/motd", "This is number 1 of three."),
    "build-box": ("cd /src && make >&2 && ./hello", "built in a MicroVM"),
    "shares": ("ls /virtiofs /9p", "from-the-host"),
    "web": ("systemctl is-active nginx && cat /var/www/html/index.html", "Hello from a MicroVM"),
}
"""What each example is asked to do, and what it says then."""
EVERYWHERE = ("hello", "python-1")
"""Examples that no hypervisor may refuse."""


@long_form
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_or_says_what_to_use(kind, example, bed, built, microvm_cli, seen):
    name = example.partition("-1")[0]
    project = beds.EXAMPLES / name
    row = f"`examples#{example}`"
    checked = microvm_cli("check", "--hypervisor", kind, str(project))
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
        f" python3 {beds.WORK}/driver.py {inner} {state} {SECONDS} -- sh -c '{job}'",
        timeout=3 * SECONDS,
    )
    assert done.status == 0, done.output
    assert said in done.output, done.output
    seen.add(kind, row, "runs")


PACKED = {Feature.QCOW2: "packed.qcow2", Feature.VHD: "packed.vhdx"}


def extras(kind):
    """Return the settings of a guest with what not every hypervisor has."""
    direct = ",direct=true" if has(kind, Feature.DIRECT) else ""
    packed = "".join(
        f',{{image="{image}",image_type="{image.partition(".")[2]}",auto_create=false}}'
        for feature, image in PACKED.items()
        if has(kind, feature)
    )
    number = KINDS.index(kind)
    interfaces = [f'{{type="bridge",id="brd{number}",bridge="br0"}}']
    if has(kind, Feature.VHOST):
        interfaces.append(f'{{type="tap",id="tap{number}",bridge="br0",tap={{vhost=true}}}}')
    if has(kind, Feature.NET_MACVTAP):
        interfaces.append(f'{{type="macvtap",id="mvt{number}",macvtap={{link="side"}}}}')
    if has(kind, Feature.NET_USER):
        interfaces.append('{type="user",id="user0"}')
    found = [
        f'volumes=[{{image="data.img",size=64{direct}}}{packed}]',
        f"interfaces=[{','.join(interfaces)}]",
        "vcpu=2",
        f"vsock={{cid={7000 + number}}}",
        "balloon=true",
    ]
    if has(kind, Feature.FORWARD):
        ends = f"host={{port={PORT}}},guest={{port=8099}}"
        found.append(f'forward_ports=[{{origin="host",proto="tcp",{ends}}}]')
    if has(kind, Feature.USER):
        found.append('user="nobody"')
    if is_there(kind, "OEM strings"):
        found.append('cloud_hypervisor.platform_oem_strings=["microvm:conformance"]')
    for feature, setting in (
        (Feature.HUGE_PAGES, "hugepage_mem=true"),
        (Feature.HOTPLUG, "hotplug_mem=256"),
        (Feature.HOTPLUGGED, "hotplugged_mem=128"),
        (Feature.INITIAL_BALLOON, "initial_balloon_mem=64"),
    ):
        if has(kind, feature):
            found.append(setting)
    return found


@pytest.fixture
def prepared(bed):
    """What a host has to have for the extras: huge pages, a link for macvtaps, an image."""
    done = bed(
        "echo 600 >/proc/sys/vm/nr_hugepages;"
        "echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled;"
        "ip link show side >/dev/null 2>&1 || {"
        " ip link add side type veth peer name peer && ip link set peer master br0 up"
        " && ip link set side up; }",
        timeout=SECONDS,
    )
    assert done.status == 0, done.output
    yield
    bed("echo 0 >/proc/sys/vm/nr_hugepages", timeout=SECONDS)


@long_form
def test_what_not_every_hypervisor_has(kind, bed, built, seen, prepared):
    inner = built(kind, "devices", *extras(kind))
    state = f"/run/vm/extras-{kind}"
    port = PORT if has(kind, Feature.FORWARD) else "none"
    memory = 768 if has(kind, Feature.HOTPLUG) else "none"
    done = bed(
        f"mkdir -p {state}; cd {state}; qemu-img create -q -f qcow2 packed.qcow2 20M;"
        " qemu-img create -q -f vhdx packed.vhdx 20M;"
        f" python3 {beds.WORK}/watch.py {state} {inner} {SECONDS} {port} {memory}",
        timeout=3 * SECONDS,
    )
    assert done.status == 3, done.output
    probe = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert probe["cpus"] == 2
    seen.add(kind, "several virtual CPUs")
    assert probe["cid"] == 7000 + KINDS.index(kind)
    seen.add(kind, Feature.VSOCK)
    _see_disks(kind, done, seen)
    _see_interfaces(kind, done, probe, seen)
    _see_memory(kind, done, seen)
    threads = [line.split() for line in done.lines("thread")]
    if has(kind, Feature.USER):
        assert str(pwd.getpwnam("nobody").pw_uid) in done.lines("uid"), done.output
        seen.add(kind, Feature.USER)
    if is_there(kind, what := "system calls of the VMM are filtered"):
        assert any(words[-1] == "2" for words in threads), done.output
        seen.add(kind, what)


def _see_disks(kind, done, seen):
    if has(kind, Feature.DIRECT):
        assert "1" in done.lines("direct"), done.output
        seen.add(kind, Feature.DIRECT)
    packed = [feature for feature in PACKED if has(kind, feature)]
    assert done.lines("packed") == ["marked"] * len(packed), done.output
    for feature in packed:
        seen.add(kind, feature)
    if is_there(kind, "OEM strings"):
        assert done.lines("oem") == ["microvm:conformance"], done.output
        seen.add(kind, "OEM strings")


def _see_interfaces(kind, done, probe, seen):
    types = [
        name
        for name, feature in (
            ("bridge", Feature.NET_BRIDGE),
            ("tap", Feature.VHOST),
            ("macvtap", Feature.NET_MACVTAP),
            ("user", Feature.NET_USER),
        )
        if has(kind, feature)
    ]
    found = probe["addresses"]
    bridged = [one for one in found if one.startswith(BRIDGED)]
    assert len(bridged) == len(set(types) - {"user"}), probe
    seen.add(kind, Feature.NET_BRIDGE)
    if "macvtap" in types:
        seen.add(kind, Feature.NET_MACVTAP)
    if "user" in types:
        assert any(one.startswith(OF_USER) for one in found), probe
        seen.add(kind, Feature.NET_USER)
    if has(kind, Feature.VHOST):
        # One of them is the vsock's.
        assert sum(line.startswith("vhost-") for line in done.lines("thread")) > 1, done.output
        seen.add(kind, Feature.VHOST)
    if has(kind, Feature.FORWARD):
        assert done.lines("forwarded") == ["over here"], done.output
        seen.add(kind, Feature.FORWARD)
        seen.add(kind, Feature.FORWARD_REMAPPED)
    if is_there(kind, "several queues of a tap"):
        queues = [nic["queues"] for nic in probe["nics"].values()]
        assert queues.count(2) == len(bridged), probe
        seen.add(kind, "several queues of a tap")


def _see_memory(kind, done, seen):
    if has(kind, Feature.HUGE_PAGES):
        assert int(done.lines("huge")[0]) >= 64 << 10, done.output
        seen.add(kind, Feature.HUGE_PAGES)
    if has(kind, Feature.INITIAL_BALLOON):
        assert int(done.lines("inflated")[0]) >= 64 << 8, done.output
        seen.add(kind, Feature.INITIAL_BALLOON)
    before, after = map(int, done.lines("memory")[0].split())
    if has(kind, Feature.HOTPLUGGED):
        # Some balloons take what they hold off the total.
        assert before + 4 * int(done.lines("inflated")[0]) > 560 << 10, done.output
        seen.add(kind, Feature.HOTPLUGGED)
    if has(kind, Feature.HOTPLUG):
        assert after > before, done.output
        seen.add(kind, Feature.HOTPLUG)
