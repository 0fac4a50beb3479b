"""What every back end plans alike: where the kernel, disks, shares and taps of a runner are."""

from dataclasses import dataclass
from typing import Literal

from microvm.model.devices import ImageType, Share
from microvm.model.facts import Facts
from microvm.model.identity import filesystem_uuid, mac
from microvm.model.plan import (
    CredentialDisk,
    LaunchPlan,
    MacvtapPlan,
    Opened,
    TapPlan,
    VolumePlan,
)
from microvm.model.runner import Runner

CREDENTIALS = "credentials.img"
JOB = "job.sock"
"""Socket of a job's stream, where the VMM has a device for it."""
STORE_TAG = "microvm-layer{}"
"""Mount tag of a layer that is served as a directory."""
VSOCK = "vmw_vsock_virtio_transport"
"""The guest's module for vsock."""
FIRST_DESCRIPTOR = 200
"""Number of the first descriptor that a VMM inherits: above what a launcher has open."""


def common_plan(runner: Runner, facts: Facts, control: str, *, queues: int = 1) -> LaunchPlan:
    """Return what every plan has; a back end replaces the rest of it, argv first of all."""
    vm = runner.microvm
    return LaunchPlan(
        name=runner.name,
        hypervisor=vm.hypervisor,
        process_name=f"microvm@{runner.name}" if vm.pretty_procnames else None,
        argv=(),
        volumes=volume_plans(runner),
        taps=taps(runner, queues=queues),
        macvtaps=macvtaps(runner, facts.machine_id),
        control=control,
        watch=control if facts.watched else None,
        layers=tuple(layer.uuid for layer in runner.system.layers),
        notes=(f"accelerator {facts.accelerator.kind}: {facts.accelerator.reason}",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One virtio disk, in the order in which the guest gets them."""

    name: str
    """`layerN`, `volumeN` or `credentials`."""
    path: str
    """Image or block device; relative to the state directory."""
    read_only: bool
    direct: bool | None = None
    serial: str | None = None
    image_type: ImageType = "raw"


def disks(runner: Runner, facts: Facts) -> list[Disk]:
    """Return the images of the root's layers, then the volumes."""
    vm = runner.microvm
    layers = [
        Disk(name=f"layer{index}", path=f"{facts.store_dir}/{layer.image}/image", read_only=True)
        for index, layer in enumerate(runner.system.layers if vm.store_on_disk else ())
    ]
    volumes = [
        Disk(
            name=f"volume{index}", path=volume.image, read_only=volume.read_only,
            direct=volume.direct, serial=volume.serial, image_type=volume.image_type,
        )
        for index, volume in enumerate(vm.volumes)
    ]  # fmt: skip
    return layers + volumes


def credential_disk(runner: Runner, facts: Facts) -> CredentialDisk | None:
    """Return the disk for credentials where the VMM can't hand them over itself, or None."""
    found = runner.microvm.credential_files
    if not found:
        return None
    paths = {name: in_project(path, facts) for name, path in found.items()}
    return CredentialDisk(image=CREDENTIALS, machine_id=facts.machine_id, files=paths)


def disks_with_credentials(runner: Runner, facts: Facts) -> list[Disk]:
    """Return `disks`, and after them the one for credentials if there is one."""
    found = disks(runner, facts)
    if runner.microvm.credential_files:
        found.append(Disk(name="credentials", path=CREDENTIALS, read_only=True))
    return found


def volume_plans(runner: Runner, *, guessed: bool = False) -> tuple[VolumePlan, ...]:
    """Return the volumes to make, check and lock before the start.

    `guessed`: the VMM can't be told the format of an image.
    """
    return tuple(
        VolumePlan(
            index=index,
            image=volume.image,
            size_mib=volume.size,
            fs_type=volume.fs_type,
            uuid=filesystem_uuid(runner.name, volume),
            label=volume.label,
            mkfs_args=volume.mkfs_extra_args,
            create=volume.auto_create,
            read_only=volume.read_only,
            root=volume.mount_point == "/",
            mounted=volume.mount_point is not None,
            image_type=volume.image_type,
            guessed=guessed,
        )
        for index, volume in enumerate(runner.microvm.volumes)
    )


def taps(runner: Runner, *, queues: int = 1) -> tuple[TapPlan, ...]:
    """Return the taps to make before the start."""
    return tuple(
        TapPlan(name=interface.id, bridge=interface.bridge, queues=queues)
        for interface in runner.microvm.interfaces
        if interface.type in ("tap", "bridge")
    )


def macvtaps(runner: Runner, identity: str) -> tuple[MacvtapPlan, ...]:
    """Return the macvtaps to make before the start; `identity`: the guest's machine-id."""
    return tuple(
        MacvtapPlan(
            name=interface.id,
            link=interface.macvtap.link,
            mode=interface.macvtap.mode,
            mac=interface.mac or mac(identity, interface.id),
        )
        for interface in runner.microvm.interfaces
        if interface.macvtap
    )


def interface_kinds(runner: Runner) -> dict[str, Literal["tap", "macvtap"]]:
    """Return the kind of each interface that is made before the start, by its name."""
    kinds: dict[str, Literal["tap", "macvtap"]]
    kinds = {"tap": "tap", "bridge": "tap", "macvtap": "macvtap"}
    return {
        interface.id: kinds[interface.type]
        for interface in runner.microvm.interfaces
        if interface.type in kinds
    }


def opened(runner: Runner, *, queues: int = 1) -> tuple[Opened, ...]:
    """Return the taps and macvtaps that the VMM inherits open, each queue under its number."""
    wanted = [(kind, name) for name, kind in interface_kinds(runner).items() for _ in range(queues)]
    return tuple(
        Opened(number=number, kind=kind, name=name, queues=queues)
        for number, (kind, name) in enumerate(wanted, FIRST_DESCRIPTOR)
    )


def descriptors(runner: Runner, *, queues: int = 1) -> dict[str, list[str]]:
    """Return the descriptor numbers of each interface that `opened` has."""
    numbers: dict[str, list[str]] = {}
    for one in opened(runner, queues=queues):
        numbers.setdefault(one.name, []).append(str(one.number))
    return numbers


def modules(runner: Runner, transport: str, *more: str) -> tuple[str, ...]:
    """Return the modules that the initrd loads: the devices' `transport`, what the root, volumes,
    shares, balloon and hot-plug memory need, and `more`.
    """
    vm = runner.microvm
    # libcrc32c asks the crypto layer for crc32c while it loads; modules.dep does not say so.
    found = [transport, "crc32c_generic", "overlay"]
    if vm.store_on_disk:
        found += ["virtio_blk", vm.store_disk_type]
    if vm.volumes or vm.credential_files:
        found.append("virtio_blk")
    if vm.uses("virtiofs"):
        found.append("virtiofs")
    if vm.uses("9p"):
        found += ["9pnet_virtio", "9p"]
    if vm.balloon:
        found.append("virtio_balloon")
    if vm.hotplug_mem:
        found.append("virtio_mem")
    return tuple(dict.fromkeys((*found, *more)))


def kernel(runner: Runner, facts: Facts) -> str:
    """Return the path of the kernel as the distribution ships it: on x86 a bzImage."""
    return f"{facts.store_dir}/{runner.system.kernel}/vmlinuz"


def vmlinux(runner: Runner, facts: Facts) -> str:
    """Return the path of the uncompressed kernel, which the store has for VMMs that need it."""
    return f"{facts.store_dir}/{runner.vmlinux}/vmlinux"


def initrd(runner: Runner, facts: Facts) -> str:
    """Return the path of the initrd: the declared one, else the guest's."""
    given = runner.microvm.initrd_path
    if given:
        return in_project(given, facts)
    return f"{facts.store_dir}/{runner.system.initrd}/initrd"


def in_project(path: str, facts: Facts) -> str:
    """Return a declared path that starts at the project."""
    return path if path.startswith("/") else f"{facts.project_dir}/{path}"


def layer_shares(runner: Runner, facts: Facts) -> list[Share]:
    """Return the shares that serve the root's layers where no image was made."""
    vm = runner.microvm
    return [
        Share(
            tag=STORE_TAG.format(index), source=f"{facts.store_dir}/{layer.tree}/tree",
            mount_point="/", proto=vm.store_proto, read_only=True, cache="always",
            security_model="passthrough",
        )
        for index, layer in enumerate(() if vm.store_on_disk else runner.system.layers)
    ]  # fmt: skip
