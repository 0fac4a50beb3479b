"""Rules between the MicroVMs of one project: what only one machine of a host can have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from microvm.errors import Problem
from microvm.hypervisors import hypervisor
from microvm.model import forwards
from microvm.model.declaration import MicroVM
from microvm.model.devices import ForwardPort, Volume, shortest
from microvm.projects import keypath


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """Something of the host that a machine takes while it runs."""

    where: str
    what: str
    value: object
    alone: bool = True
    """Whether nobody else can have it then; else only others who want it alone can't."""
    key: object = None
    """What is taken, where the value's name isn't all of it."""

    @property
    def thing(self) -> object:
        """Return what is the same for two claims of the same thing."""
        return self.key or (self.what, self.value)


def check(microvms: Mapping[str, MicroVM]) -> Iterator[Problem]:
    """Yield, once for each MicroVM, what another one has before it: both couldn't run."""
    taken: dict[object, list[tuple[str, _Claim]]] = {}
    for name, microvm in microvms.items():
        for claim in _claims(microvm):
            others = taken.setdefault(claim.thing, [])
            # Twice in one MicroVM is told by the rules of one.
            rivals = [
                f"{keypath.join(('microvms', owner))}.{other.where}"
                for owner, other in others
                if owner != name and (claim.alone or other.alone)
            ]
            if rivals:
                where = f"{keypath.join(('microvms', name))}.{claim.where}"
                message = f"{claim.what} {claim.value} is that of {rivals[0]} too"
                hint = "give each MicroVM one of its own"
                yield Problem(where=where, message=message, hint=hint)
            others.append((name, claim))


def _claims(vm: MicroVM) -> Iterator[_Claim]:
    yield from _files(vm)
    yield from _network(vm)
    # Some have a vsock of Unix sockets, where CIDs are each machine's own.
    if vm.vsock.cid is not None and hypervisor(vm.hypervisor).host_vsock:
        yield _Claim(where="vsock.cid", what="the CID", value=vm.vsock.cid)
    if vm.machine_id is not None:
        plain = vm.machine_id.replace("-", "")
        yield _Claim(where="machine_id", what="the machine-id", value=plain)
    for index, device in enumerate(vm.devices):
        if device.bus == "pci":  # a USB selector may fit several
            yield _Claim(where=f"devices.{index}.path", what="the device", value=device.path)


def _files(vm: MicroVM) -> Iterator[_Claim]:
    """Images and sockets; relative ones lie in each machine's own state directory."""
    sockets = [("socket", vm.socket), ("graphics.socket", vm.graphics.socket)]
    sockets += [(f"shares.{i}.socket", share.socket) for i, share in enumerate(vm.shares)]
    found = [_file(where, "the socket", path) for where, path in sockets if path]
    found += [_image(index, volume) for index, volume in enumerate(vm.volumes)]
    yield from (claim for claim in found if str(claim.value).startswith("/"))


def _file(where: str, what: str, path: str, *, alone: bool = True) -> _Claim:
    value = shortest(path)
    return _Claim(where=where, what=what, value=value, alone=alone, key=("file", value))


def _image(index: int, volume: Volume) -> _Claim:
    where = f"volumes.{index}.image"
    return _file(where, "the image", volume.image, alone=not volume.read_only)


def _network(vm: MicroVM) -> Iterator[_Claim]:
    for index, interface in enumerate(vm.interfaces):
        key = f"interfaces.{index}"
        if interface.mac:
            value = interface.mac.lower()
            yield _Claim(where=f"{key}.mac", what="the MAC address", value=value)
        if interface.type != "user":
            yield _Claim(where=f"{key}.id", what="the interface", value=interface.id)
        if interface.macvtap:
            yield _Claim(
                where=f"{key}.macvtap.link",
                what="the parent interface",
                value=interface.macvtap.link,
                alone=interface.macvtap.mode == "passthru",
            )
    for index, forward in enumerate(vm.forward_ports):
        if forward.origin == "host":
            yield from _port(f"forward_ports.{index}.host", forward)


def _port(where: str, forward: ForwardPort) -> Iterator[_Claim]:
    """One address has it to itself; all addresses together exclude each of them."""
    what, value = "the forwarded port", forwards.port(forward)
    everywhere = forward.host.address in forwards.EVERYWHERE
    number = ("port", forward.proto, forward.host.port)
    yield _Claim(where=where, what=what, value=value, alone=everywhere, key=number)
    if not everywhere:
        yield _Claim(where=where, what=what, value=value)
