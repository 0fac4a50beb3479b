"""The bed, what is built for it, and what was seen in it."""

import itertools
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import bed as beds
import pytest
from bed import REPEAT, SECONDS
from declared import DIRECTORIES, GIFT, KINDS
from report import PAGE, Seen

from microvm.hypervisors import hypervisor

MOST_ENDS = 2
"""How often the bed may end during the boots of one run."""


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
    """The bed of most tests."""
    with _bed(microvm_cli, tmp_path_factory.mktemp("nested")) as running:
        yield running


@pytest.fixture(scope="module")
def rich_bed(microvm_cli, tmp_path_factory):
    """A bed with devices to give away."""
    with _bed(microvm_cli, tmp_path_factory.mktemp("giving"), beds.GIVING) as running:
        yield running


@pytest.fixture
def giving(rich_bed):
    """That bed; vfio-pci has its disk."""
    place = f"/sys/bus/pci/devices/{GIFT}"
    done = rich_bed(
        f"modprobe vfio-pci; echo vfio-pci >{place}/driver_override;"
        f" echo {GIFT} >{place}/driver/unbind; echo {GIFT} >/sys/bus/pci/drivers_probe;"
        f" basename $(readlink {place}/driver)",
        timeout=SECONDS,
    )
    assert done.output.splitlines()[-1] == "vfio-pci", done.output
    return rich_bed


@contextmanager
def _bed(microvm_cli, place, settings=()):
    if beds.qemu() is None:
        pytest.skip("QEMU 10 is missing: $MICROVM_TEST_QEMU, or qemu-system-x86_64 on PATH")
    found = programs()
    if not found:
        pytest.skip("no hypervisor: $MICROVM_TEST_HYPERVISORS names a directory, or PATH has them")
    running = beds.start(
        microvm_cli.command(), dict(microvm_cli.env), place, found.values(), microvm_cli.store,
        settings,
    )  # fmt: skip
    try:
        yield running
    finally:
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
    for name in DIRECTORIES:
        (place / name).mkdir()
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


@pytest.fixture(scope="session")
def boots(request, bed, built, versions):
    """Boot `hello` on each hypervisor in turns, so that a busy moment is not one's alone."""
    kinds = [
        item.callspec.params["kind"]
        for item in request.session.items
        if "boots" in item.fixturenames and item.callspec.params["kind"] in versions
    ]
    found = {kind: [] for kind in kinds}
    noted, noted_before = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    inner = {kind: built(kind, "hello") for kind in kinds}
    ended, booted = 0, set()
    for kind in itertools.islice(itertools.cycle(kinds), REPEAT * len(kinds)):
        state = f"/run/vm/hello-{kind}"
        driver = f"python3 {beds.WORK}/driver.py {inner[kind]} {state} {SECONDS}"
        command = f"mkdir -p {state}; cd {state}; python3 {beds.WORK}/repeat.py {driver}"
        done = None
        while done is None:
            try:
                done = bed(command, timeout=3 * SECONDS)
            except beds.BedEndedError:
                # Its volumes went with it. What was seen before stays; this boot is not judged.
                ended, noted_before, booted = ended + 1, dict(noted), set()
                assert ended <= MOST_ENDS
        assert done.status == 0, done.output
        run = json.loads(done.output.splitlines()[0])
        found[kind].append({**run, "first": kind not in booted})
        booted.add(kind)
        noted[kind] = noted_before[kind] + int(done.lines("noted")[0])
    return found, noted, ended


@pytest.fixture
def prepared(bed):
    """What a host has to have for the extras: huge pages, links for macvtaps."""
    done = bed(
        "echo 600 >/proc/sys/vm/nr_hugepages;"
        "echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled;"
        "mkdir -p /dev/hugepages; mountpoint -q /dev/hugepages ||"
        " mount -t hugetlbfs none /dev/hugepages;"
        "for link in side alone; do"
        " ip link show $link >/dev/null 2>&1 && continue;"
        " ip link add $link type veth peer name of-$link && ip link set of-$link master br0 up"
        " && ip link set $link up || exit; done",
        timeout=SECONDS,
    )
    assert done.status == 0, done.output
    yield
    bed("echo 0 >/proc/sys/vm/nr_hugepages", timeout=SECONDS)
