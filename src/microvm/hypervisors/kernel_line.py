"""The kernel command line: everything that the guest is told at boot, for every hypervisor."""

from microvm.errors import Problem, SpecError
from microvm.hypervisors.resources import STORE_TAG
from microvm.model.facts import Facts
from microvm.model.identity import filesystem_uuid
from microvm.model.plan import CredentialDisk
from microvm.model.runner import Runner

LIMIT = 2047
"""COMMAND_LINE_SIZE of x86 less the final NUL (arch/x86/include/asm/setup.h)."""
ROOM = 1000
"""Bytes of it for declared parameters; ours take the rest when all slots hold foreign disks."""


def kernel_line(
    runner: Runner,
    facts: Facts,
    *,
    own: tuple[str, ...],
    modules: tuple[str, ...],
    disks: int,
    job: str | None,
    credentials: CredentialDisk | None = None,
    late: tuple[str, ...] = (),
) -> str:
    """Return the kernel command line.

    `own`: the hypervisor's parameters. `disks`: disks before the first volume, for those that are
    found by position. `job`: the job stream as the guest names it. `credentials`: the disk that
    has them. `late`: the hypervisor's parameters that win over the guest's.
    """
    microvm = runner.microvm
    words = [
        *own,
        f"microvm.modules={','.join(modules)}",
        f"microvm.layers={','.join(_layers(runner))}",
    ]
    words.append(f"microvm.root={_root(runner, facts, disks)}")
    places = [
        f"{index}:{disk_name(disks + index)}"
        for index in facts.positions
        if microvm.volumes[index].mount_point != "/"
    ]
    if places:
        words.append(f"microvm.at={','.join(places)}")
    if grown := _outgrown(runner, facts):
        words.append(f"microvm.grow={','.join(grown)}")
    words.append(f"systemd.machine_id={facts.machine_id}")
    if credentials:
        words.append(f"microvm.credentials={credentials.machine_id}")
    if facts.job and job:
        words += [f"microvm.job={job}", "systemd.mask=microvm-console.service"]
    if microvm.interfaces:
        words.append("microvm.online")
    if facts.terminal:
        rows, columns, term = facts.terminal
        words.append(f"microvm.tty={rows}x{columns},{term}")
    line = " ".join((*words, *runner.system.kernel_params, *late, *microvm.kernel_params))
    if len(line) > LIMIT:
        message = f"the kernel command line has {len(line)} bytes, the kernel takes {LIMIT}"
        hint = "say fewer kernel_params"
        raise SpecError([Problem(where="kernel_params", message=message, hint=hint)])
    return line


def disk_name(index: int) -> str:
    """Return the kernel's name of the virtio disk at an index: vda to vdz, vdaa and so on."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("a") + rest) + name
    return f"vd{name}"


def _layers(runner: Runner) -> list[str]:
    if runner.microvm.store_on_disk:
        return [f"{layer.kind}:{layer.uuid}" for layer in runner.system.layers]
    proto = runner.microvm.store_proto
    return [f"{proto}:{STORE_TAG.format(index)}" for index, _ in enumerate(runner.system.layers)]


def _outgrown(runner: Runner, facts: Facts) -> list[str]:
    """Return the mounted volumes that the initrd grows: their index, or `root`."""
    points = {index: runner.microvm.volumes[index].mount_point for index in facts.outgrown}
    return ["root" if point == "/" else str(index) for index, point in points.items() if point]


def _root(runner: Runner, facts: Facts, disks: int) -> str:
    for index, volume in enumerate(runner.microvm.volumes):
        if volume.mount_point == "/":
            if index in facts.positions:
                return f"{volume.fs_type}:{disk_name(disks + index)}"
            return f"{volume.fs_type}:{filesystem_uuid(runner.name, volume)}"
    return "tmpfs"
