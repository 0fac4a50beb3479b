"""A guest's memory, changed while qemu runs: no guest is needed to see what it is asked to be."""

import os
import subprocess
from contextlib import ExitStack

import pytest

from microvm.errors import ApiError, MicroVMError
from microvm.host.process import Deadline
from microvm.host.qmp import Qmp
from microvm.hypervisors import hypervisor, qemu_memory
from microvm.hypervisors.qemu import PROGRAM
from microvm.model.declaration import MicroVM

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
MIB = 1 << 20
BALLOON = ("-device", "virtio-balloon-pci")
PLUGGABLE = MicroVM(mem=256, hotplug_mem=256, hotplugged_mem=128)


@pytest.fixture
def started(tmp_path, tool):
    """Start a halted qemu with the memory of a declaration; return how to control it."""
    running = []

    def start(vm, *words):
        memory = qemu_memory.hotplug_memory(vm) if vm.hotplug_mem else []
        command = [
            tool(PROGRAM), "-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none",
            "-S", "-m", qemu_memory.memory_size(vm), "-qmp", "unix:a.sock,server=on,wait=off",
            "-qmp", "unix:b.sock,server=on,wait=off", *memory, *words,
        ]  # fmt: skip
        with (tmp_path / "log").open("wb") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))
        deadline = Deadline(60)
        while not deadline.expired:
            try:
                control = hypervisor("qemu").control(tmp_path / "a.sock", timeout_s=10)
                stack.callback(control.close)
                qmp = Qmp(tmp_path / "b.sock")
            except ApiError:
                assert running[0].poll() is None, (tmp_path / "log").read_text()
                os.sched_yield()
            else:
                stack.callback(qmp.close)
                return control, qmp
        pytest.fail("qemu did not open its sockets")

    with ExitStack() as stack:
        yield start
    for one in running:
        one.kill()
        one.wait()


def requested(qmp):
    [region] = qmp.call("query-memory-devices")
    return region["data"]["requested-size"] // MIB


def test_memory_beyond_that_at_boot_is_plugged_in(started):
    control, qmp = started(PLUGGABLE, *BALLOON)
    assert requested(qmp) == 128
    for size, plugged in ((512, 256), (300, 44), (256, 0), (100, 0)):
        control.set_memory(size)
        assert requested(qmp) == plugged


REFUSED = [
    (PLUGGABLE, 513, "the guest can have 1 to 512 MiB, not 513", None),
    (PLUGGABLE, 0, "1 to 512 MiB", None),
    (PLUGGABLE, 301, "plugged in by 2 MiB", "say 300 or 302"),
    (PLUGGABLE, 255, "without a balloon the guest keeps its 256 MiB", "balloon = true"),
    (MicroVM(mem=256), 257, "1 to 256 MiB", None),
]


@pytest.mark.parametrize(("vm", "size", "said", "hint"), REFUSED)
def test_a_size_that_can_not_be_is_refused_with_those_that_can(started, vm, size, said, hint):
    control, _ = started(vm)
    with pytest.raises(MicroVMError) as raised:
        control.set_memory(size)
    assert said in raised.value.message
    assert hint is None or hint in raised.value.hint


@pytest.mark.parametrize("devices", [BALLOON, ()])
def test_the_balloon_is_asked_for_without_anyone_who_asks(started, tmp_path, devices):
    vm = MicroVM(mem=256, balloon=True, initial_balloon_mem=64)
    for name, text in qemu_memory.initial_balloon(vm).items():
        (tmp_path / name).write_text(text)
    # What the balloon holds is told only when a guest has filled it.
    _, qmp = started(vm, *devices, *qemu_memory.first_commands())
    answers = tmp_path / f"{qemu_memory.START}.out"
    deadline = Deadline(30)
    while answers.read_text().count("(qemu)") < 2 and not deadline.expired:
        qmp.call("query-status")
    said = answers.read_text()
    assert "balloon 192" in said
    assert ("Error: " in said) != bool(devices)
