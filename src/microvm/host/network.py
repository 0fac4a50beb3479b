"""Tap interfaces, made by ioctl (kernel's tuntap.rst, netdevice(7), linux/ethtool.h); ports."""

import array
import fcntl
import os
import socket
import struct

from microvm.errors import HostError, StateError
from microvm.host import files
from microvm.model.plan import TapPlan

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x4000, 0x8000
_IFF_MULTI_QUEUE = 0x100
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRADDIF = 0x8913, 0x8914, 0x89A2
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0xA
_IFF_UP = 0x1


def index(name: str) -> int | None:
    """Return the number of an interface in this network namespace, or None when there is none."""
    # Not from /sys: that shows the namespace of whoever mounted it.
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def in_use(name: str) -> bool:
    """Return whether a program holds a tap open: it has a carrier then (drivers/net/tun.c)."""
    # Not IFF_RUNNING: that lags behind by up to a second (net/core/link_watch.c).
    value = array.array("I", (_ETHTOOL_GLINK, 0))
    request = struct.pack("16sP8x", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)
    return bool(value[1])


def tap_up(tap: TapPlan, owner: int) -> int:
    """Make a persistent tap for the user id `owner`, join its bridge, bring it up.

    Returns its interface index. One that exists is refused: opening it would join it. Raises
    `StateError`, `HostError`.
    """
    if index(tap.name) is not None:
        raise StateError(
            f"the interface {tap.name} exists already and may be in use",
            hint=f"take it away (ip link delete {tap.name}), or declare another id",
        )
    try:
        _set_persistent(tap, owner)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if tap.bridge:
                _join(control, tap.name, tap.bridge)
            _up(control, tap.name)
    except PermissionError as error:
        raise HostError(
            f"no permission to make the tap {tap.name}", hint="run as root, or use type `user`"
        ) from error
    except FileNotFoundError as error:
        raise HostError(
            f"could not make the tap {tap.name}: there is no /dev/net/tun",
            hint="load the module: modprobe tun",
        ) from error
    except OSError as error:
        tap_down(tap)
        raise files.explain(error, f"make the tap {tap.name}") from error
    except HostError:
        tap_down(tap)
        raise
    return index(tap.name) or 0


def tap_down(tap: TapPlan) -> None:
    """Take a tap away; one that is gone is fine."""
    if index(tap.name) is not None:
        _set_persistent(tap, None)


def open_tap(name: str, queues: int) -> int:
    """Return a descriptor of one queue of a tap that exists; the VMM inherits it.

    Raises `HostError`.
    """
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _tap_flags(queues)))
    except OSError as error:
        os.close(device)
        raise files.explain(error, f"open the tap {name}") from error
    return device


def _tap_flags(queues: int) -> int:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    return flags | _IFF_MULTI_QUEUE if queues > 1 else flags


def _set_persistent(tap: TapPlan, owner: int | None) -> None:
    """Let a tap outlive the programs that open it; without an owner, take that back."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _tap_flags(tap.queues)
        if owner is not None:
            flags |= _IFF_TUN_EXCL
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", tap.name.encode(), flags))
        if owner is not None:
            fcntl.ioctl(device, _TUNSETOWNER, owner)
        fcntl.ioctl(device, _TUNSETPERSIST, int(owner is not None))
    finally:
        os.close(device)


def _flags(control: socket.socket, name: str) -> int:
    raw = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
    flags: int = struct.unpack("16sH14x", raw)[1]
    return flags


def _up(control: socket.socket, name: str) -> None:
    flags = _flags(control, name) | _IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags))


def _join(control: socket.socket, name: str, bridge: str) -> None:
    if index(bridge) is None:
        raise HostError(
            f"{name} can't join {bridge}: there is no such bridge",
            hint=f"make it: ip link add {bridge} type bridge",
        )
    request = struct.pack("16si12x", bridge.encode(), index(name) or 0)
    fcntl.ioctl(control, _SIOCBRADDIF, request)
