"""What not every hypervisor has: declared where it is there, and seen from inside or on the host."""

import json
import pwd

import bed as beds
import pytest
from bed import SECONDS, long_form
from declared import (
    BRIDGED,
    GIFT,
    KINDS,
    MASKED,
    MODES,
    OF_USER,
    PACKED,
    PEN,
    PORT,
    SOCKET,
    extras,
    has,
    is_direct,
    is_there,
    macvtap,
)
from report import FIRECRACKER, MACVTAPS

from microvm.hypervisors.crosvm import NO_MSI
from microvm.hypervisors.features import Feature

pytestmark = [pytest.mark.nested, pytest.mark.timeout(4 * SECONDS)]


@long_form
def test_what_not_every_hypervisor_has(kind, bed, built, seen, prepared):
    inner = built(kind, "devices", *extras(kind))
    state = f"/run/vm/extras-{kind}"
    port = PORT if has(kind, Feature.FORWARD) else "none"
    memory = 768 if has(kind, Feature.HOTPLUG) else "none"
    admitted = SECONDS if has(kind, Feature.NET_MACVTAP) else 0
    done = bed(
        f"mkdir -p {state}; cd {state}; qemu-img create -q -f qcow2 packed.qcow2 20M;"
        " qemu-img create -q -f vpc -o subformat=fixed,force_size=on packed.vhd 20M;"
        " sed -n '/^flags/{s/^[^:]*: /host /p;q}' /proc/cpuinfo;"
        f" sh {beds.WORK}/admit.sh {macvtap(kind, 'source')} {admitted} &"
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
    _see_processor(kind, done, seen)
    threads = [line.split() for line in done.lines("thread")]
    if has(kind, Feature.USER):
        assert str(pwd.getpwnam("nobody").pw_uid) in done.lines("uid"), done.output
        seen.add(kind, Feature.USER)
    if has(kind, Feature.SOCKET):
        assert SOCKET in done.lines("socket"), done.output
        seen.add(kind, Feature.SOCKET)
    if has(kind, Feature.BALLOON_GIVES):
        assert done.lines("gives") == ["1"], done.output
        seen.add(kind, Feature.BALLOON_GIVES)
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
    if any(is_direct(kind, feature) for feature in packed):
        assert "1" in done.lines("packed-direct"), done.output
        seen.add(kind, Feature.QCOW2_DIRECT)
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
    macvtaps = len(MODES) if "macvtap" in types else 0
    assert len(bridged) == len(set(types) - {"user", "macvtap"}) + macvtaps, probe
    seen.add(kind, Feature.NET_BRIDGE)
    if "macvtap" in types:
        seen.add(kind, Feature.NET_MACVTAP)
        _see_modes(kind, done, probe, seen)
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
    if has(kind, Feature.FORWARD_REMAPPED):
        assert done.lines("outward") == ["out there"], done.output
        seen.add(kind, Feature.FORWARD_REMAPPED)
    if is_there(kind, "several queues of a tap"):
        queues = [nic["queues"] for nic in probe["nics"].values()]
        assert queues.count(2) == len(bridged), probe
        seen.add(kind, "several queues of a tap")


def _see_modes(kind, done, probe, seen):
    found = {name: (mode, mac) for name, mode, mac in map(str.split, done.lines("macvtap"))}
    macs = [nic["mac"] for nic in probe["nics"].values()]
    for wanted in MODES:
        mode, mac = found[macvtap(kind, wanted)]
        assert mode == wanted, done.output
        # Linux gives one in mode passthru the address of its link.
        assert mac in macs or wanted == "passthru", done.output
    seen.add(kind, MACVTAPS)


def _see_processor(kind, done, seen):
    """See it as the template of firecracker has it, and what its other options do."""
    assert MASKED in done.lines("host")[0].split()
    assert (MASKED in done.lines("flags")[0].split()) == (kind != "firecracker"), done.output
    if kind != "firecracker":
        return
    engine, template, more = FIRECRACKER
    seen.add(kind, template)
    assert done.lines("ring"), done.output  # and none of it in the guest that says Sync
    seen.add(kind, engine)
    assert done.lines("threads") in (["0-1"], ["0,1"]), done.output
    limited, free = map(int, done.lines("took")[0].split())
    assert limited > max(2500, free), done.output
    seen.add(kind, more)


def _see_memory(kind, done, seen):
    if has(kind, Feature.HUGE_PAGES):
        assert int(done.lines("huge")[0]) >= 64 << 10, done.output
        seen.add(kind, Feature.HUGE_PAGES)
        seen.add(kind, Feature.HUGE_BALLOON)  # the guest has one
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


@long_form
@pytest.mark.parametrize("kind", [k for k in KINDS if has(k, Feature.PCI)], indirect=True)
def test_devices_of_the_host_reach_the_guest(kind, giving, built, seen):
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
    done = giving(
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
