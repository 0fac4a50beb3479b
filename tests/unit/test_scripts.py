"""What a runner's scripts do on a host that has little of what its machine needs."""

import json
import os
import subprocess
import sys

import pytest

from microvm.hypervisors import hypervisor
from microvm.launch import planning, taps
from microvm.model.codec import to_plain
from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import Interface, MacvtapOptions, Share
from microvm.model.options import QemuOptions, VirtiofsdOptions
from microvm.model.plan import MacvtapPlan, TapPlan
from microvm.model.runner import Runner
from planned import SYSTEM, facts

TAP = Interface(type="tap", id="mvtest7")
BRIDGE = Interface(type="bridge", id="mvtest8", bridge="nosuch")
MACVTAP = Interface(type="macvtap", id="mvtest9", macvtap=MacvtapOptions(link="eth0"))
MAIN = "import sys; from microvm.launch.main import main; sys.exit(main(sys.argv[1:]))"


def runner_of(vm):
    return Runner(schema=1, name="vm", microvm=vm, system=SYSTEM, vmlinux="v", disk="d")


@pytest.fixture
def script(tmp_path):
    """Carry out a verb on a machine in its state directory, with this PATH."""
    state = tmp_path / "state"
    state.mkdir()

    def run(verb, vm, path=""):
        file = tmp_path / "store/runner" / planning.RUNNER_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(to_plain(runner_of(vm))))
        return subprocess.run(
            [sys.executable, "-c", MAIN, verb, str(tmp_path / "store/runner")], cwd=state,
            env={"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip

    return run


BROKEN = MicroVM(
    hypervisor="qemu",
    accel="kvm",
    user="nobody-here",
    qemu=QemuOptions(program="/nosuch/qemu"),
    interfaces=(TAP, BRIDGE, MACVTAP),
    shares=(Share(tag="gone", source="/nosuch/source", mount_point="/gone"),),
)


def test_interfaces_are_taken_away_when_nothing_else_is_there_any_more(script, tmp_path):
    record = tmp_path / "state" / taps.RECORD
    made = {
        "mvtest7": taps.Made(999_999, tap=TapPlan(name="mvtest7", bridge=None)),
        "mvtest8": taps.Made(999_998, tap=TapPlan(name="mvtest8", bridge="br0")),
        "mvtest9": taps.Made(
            999_997, macvtap=MacvtapPlan(name="mvtest9", link="up0", mode="bridge", mac="02::1")
        ),
    }
    record.write_text(json.dumps({name: to_plain(one) for name, one in made.items()}))
    refused = script("run", BROKEN)
    assert refused.returncode == 4, refused.stderr
    done = script("tap-down", BROKEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(json.loads(record.read_text())) == ["mvtest9"], "that is macvtap-down's"
    done = script("macvtap-down", BROKEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert not record.exists()


def test_an_interface_is_made_before_the_rest_is_there(script):
    """As far as this host's network lets us: what stops it is the interface, not the program."""
    link = Interface(type="macvtap", id="mvtest9", macvtap=MacvtapOptions(link="mvnosuch"))
    done = script("macvtap-up", MicroVM(qemu=BROKEN.qemu, shares=BROKEN.shares, interfaces=(link,)))
    assert done.returncode == 4
    assert "mvtest9 can't be on mvnosuch: there is no such interface" in done.stderr


@pytest.mark.parametrize("kind", HypervisorKind)
@pytest.mark.parametrize("vcpu", [1, 3, 20])
def test_the_interfaces_are_those_that_the_start_uses(kind, vcpu, tmp_path):
    wanted = (TAP,) if kind in ("firecracker", "crosvm", "kvmtool") else (TAP, MACVTAP)
    runner = runner_of(MicroVM(hypervisor=kind, vcpu=vcpu, interfaces=wanted))
    alone = planning.interfaces(runner, tmp_path)
    start = planning.Start(runner_dir=tmp_path, state_dir=tmp_path, project_dir=tmp_path)
    known = facts(kind, machine_id=planning.identity(runner, start.state_dir))
    whole = hypervisor(kind).plan(runner, known)
    assert (alone.taps, alone.macvtaps) == (whole.taps, whole.macvtaps)


def test_the_start_finds_the_macvtap_with_the_guests_address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vmm = tmp_path / "qemu"
    vmm.write_text("#!/bin/sh\necho QEMU emulator version 10.0.2\n")
    vmm.chmod(0o755)
    vm = MicroVM(accel="tcg", qemu=QemuOptions(program=str(vmm)), interfaces=(MACVTAP,))
    start = planning.Start(runner_dir=tmp_path, state_dir=tmp_path, project_dir=tmp_path)
    plan = planning.plan(runner_of(vm), start)
    (made,) = planning.interfaces(runner_of(vm), tmp_path).macvtaps
    assert plan.macvtaps == (made,)
    assert any(made.mac in word for word in plan.argv)


def test_the_runners_script_tells_what_was_chosen_and_why(script, tmp_path):
    vmm = tmp_path / "qemu"
    vmm.write_text("#!/bin/sh\necho QEMU emulator version 10.0.2\n")
    vmm.chmod(0o755)
    done = script("run", MicroVM(accel="tcg", qemu=QemuOptions(program=str(vmm))), "/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "microvm-launch: accelerator tcg: declared\n"
    assert done.stdout == "QEMU emulator version 10.0.2\n", "the VMM's"


def test_a_share_is_served_in_a_directory_that_is_not_there_yet(script, tmp_path):
    vmm, helper = tmp_path / "qemu", tmp_path / "virtiofsd"
    vmm.write_text("#!/bin/sh\necho QEMU emulator version 10.0.2\n")
    helper.write_text("#!/bin/sh\necho virtiofsd 1.13.0\nexit 9\n")
    for program in (vmm, helper):
        program.chmod(0o755)
    vm = MicroVM(
        accel="tcg",
        qemu=QemuOptions(program=str(vmm)),
        virtiofsd=VirtiofsdOptions(program=str(helper)),
        shares=(Share(tag="src", source=str(tmp_path), mount_point="/src", socket="x/y.sock"),),
        credential_files={"key": "/nosuch/key"},  # the VMM's matter
    )
    done = script("virtiofsd-run", vm, "/usr/bin:/bin")
    assert "virtiofsd-src ended with status 9" in done.stderr, "it came to its start"
    assert (tmp_path / "state/x").is_dir()
