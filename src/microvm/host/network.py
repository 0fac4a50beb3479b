"""Tap interfaces, made by ioctl (Documentation/networking/tuntap.rst, netdevice(7))."""

import fcntl
import os
import socket
import struct
from pathlib import Path

from microvm.errors import HostError, StateError
from microvm.host import files
from microvm.model.plan import TapPlan

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x4000, 0x8000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFINDEX, _SIOCBRADDIF = 0x8913, 0x8914, 0x8933, 0x89A2
_IFF_UP = 0x1


def tap_up(tap: TapPlan, owner: int) -> None:
    """Make a persistent tap for the user id `owner`, join its bridge, bring it up.

    One that exists is refused: opening it would join it. Raises `StateError`, `HostError`.
    """
    if Path("/sys/class/net", tap.name).exists():
        raise StateError(
            f"the interface {tap.name} exists already and may be in use",
            hint=f"take it away (ip link delete {tap.name}), or declare another id",
        )
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            request = struct.pack("16sH14x", tap.name.encode(), flags | _IFF_TUN_EXCL)
            fcntl.ioctl(device, _TUNSETIFF, request)
            fcntl.ioctl(device, _TUNSETOWNER, owner)
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
        finally:
            os.close(device)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if tap.bridge:
                _join(control, tap.name, tap.bridge)
            _up(control, tap.name)
    except PermissionError as error:
        raise HostError(
            f"no permission to make the tap {tap.name}", hint="run as root, or use type `user`"
        ) from error
    except OSError as error:
        raise files.explain(error, f"make the tap {tap.name}") from error


def tap_down(tap: TapPlan) -> None:
    """Take a tap away; one that is gone is fine."""
    if not Path("/sys/class/net", tap.name).exists():
        return
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", tap.name.encode(), flags))
        fcntl.ioctl(device, _TUNSETPERSIST, 0)
    finally:
        os.close(device)


def _up(control: socket.socket, name: str) -> None:
    raw = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
    flags = struct.unpack("16sH14x", raw)[1]
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags | _IFF_UP))


def _join(control: socket.socket, name: str, bridge: str) -> None:
    if not Path("/sys/class/net", bridge, "bridge").exists():
        raise HostError(
            f"{name} can't join {bridge}: there is no such bridge",
            hint=f"make it: ip link add {bridge} type bridge",
        )
    raw = fcntl.ioctl(control, _SIOCGIFINDEX, struct.pack("16si12x", name.encode(), 0))
    index = struct.unpack("16si12x", raw)[1]
    fcntl.ioctl(control, _SIOCBRADDIF, struct.pack("16si12x", bridge.encode(), index))
