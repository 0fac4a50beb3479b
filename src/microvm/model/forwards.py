"""How a guest on user networking finds services of the host: addresses as QEMU hands them out."""

from microvm.model.devices import ForwardPort

HOST = "10.0.2.2"
"""The host's 127.0.0.1, as the guest sees it (qemu-system-x86_64(1), `-netdev user`)."""
HOST_V6 = "fec0::2"
"""The host's ::1, as the guest sees it."""
OTHERS = (HOST, HOST_V6, "10.0.2.3", "fec0::3")
"""Addresses that are the host's or its name server's."""
GUEST = "10.0.2.15"
"""The guest's own address: there is one guest on each of these networks."""

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104


def collide(one: ForwardPort, other: ForwardPort) -> bool:
    """Return whether both open the same port of the host: at one address, or at all and at one."""
    same = (one.proto, one.host.port) == (other.proto, other.host.port)
    addresses = {_opened(one), _opened(other)}
    return same and (len(addresses) == 1 or not addresses.isdisjoint(EVERYWHERE))


def port(forward: ForwardPort) -> str:
    """Return the port that is opened on the host, as one word."""
    return f"{written(_opened(forward), forward.host.port)}/{forward.proto}"


def _opened(forward: ForwardPort) -> str:
    return forward.host.address or "127.0.0.1"


def entrance(forward: ForwardPort) -> tuple[str, int]:
    """Return the address and port that the guest connects to (`origin = "guest"`)."""
    return forward.guest.address or "127.0.0.1", forward.guest.port


def target(forward: ForwardPort) -> tuple[str, int]:
    """Return where the guest finds the host's end."""
    address = forward.host.address or "127.0.0.1"
    return {"127.0.0.1": HOST, "::1": HOST_V6}.get(address, address), forward.host.port


def is_direct(forward: ForwardPort) -> bool:
    """Return whether user networking alone leads the guest there."""
    return entrance(forward) == target(forward)


def is_local(address: str) -> bool:
    """Return whether every guest has this address without being given it."""
    return address.startswith("127.") or address in ("::1", GUEST, *EVERYWHERE)


def written(address: str, port: int) -> str:
    """Return address and port as one word; an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
