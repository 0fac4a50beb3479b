"""What names and numbers follow from other names: volumes' UUIDs, MACs, machine ids."""

import hashlib
import uuid

from microvm.model.devices import Volume

_NAMESPACE = uuid.UUID("5e0f0f0c-6d76-4d50-8a6c-6d6963726f76")


def volume_uuid(name: str, image: str) -> str:
    """Return the file system UUID of the volume `image` of the MicroVM `name`."""
    return str(uuid.uuid5(_NAMESPACE, f"volume\0{name}\0{image}"))


def layer_uuid(key: str) -> str:
    """Return the UUID of a layer's image whose inputs hash to `key`."""
    return str(uuid.uuid5(_NAMESPACE, f"layer\0{key}"))


def machine_id(host_id: str, name: str, state_dir: str) -> str:
    """Return 32 hexadecimal digits that name one machine on one host (RFC 9562 version 5)."""
    return uuid.uuid5(_NAMESPACE, f"machine\0{host_id}\0{name}\0{state_dir}").hex


def dashed(identity: str) -> str:
    """Return a machine-id, with or without dashes, as a UUID is written."""
    plain = identity.replace("-", "")
    return f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}"


def mac(machine: str, interface: str) -> str:
    """Return a locally administered unicast MAC (IEEE 802c) of a machine's interface."""
    digest = hashlib.sha256(f"mac\0{machine}\0{interface}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def cid(machine: str) -> int:
    """Return a vsock context id of a machine that has declared none (vsock(7): 0 to 2 and the
    last are taken). Where the host's kernel shares them out, two machines that hash alike can't
    run at once: one pair in 2**32.
    """
    digest = hashlib.sha256(f"cid\0{machine}".encode()).digest()
    return 3 + int.from_bytes(digest[:4], "big") % (0xFFFFFFFF - 3)


def vsock_port(machine: str) -> int:
    """Return the vsock port of the host that a machine's job stream goes to: one of the upper half,
    where people who choose a port don't look.
    """
    digest = hashlib.sha256(f"port\0{machine}".encode()).digest()
    return 1 << 31 | int.from_bytes(digest[:4], "big") >> 2


def filesystem_uuid(name: str, volume: Volume) -> str:
    """Return the UUID of a volume's file system as findfs(8) spells it.

    vfat has a 32-bit serial number in its place.
    """
    found = volume_uuid(name, volume.image)
    if volume.fs_type == "vfat":
        return f"{found[:4]}-{found[4:8]}".upper()
    return found
