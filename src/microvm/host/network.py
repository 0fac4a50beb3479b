"""Tap and macvtap interfaces: kernel's tuntap.rst, netdevice(7), linux/ethtool.h."""

import array
import errno
import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

from microvm.errors import HostError, StateError
from microvm.host import files, rtnetlink
from microvm.model.plan import MacvtapPlan, TapPlan

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x4000, 0x8000
_IFF_MULTI_QUEUE = 0x100
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRADDIF = 0x8913, 0x8914, 0x89A2
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0xA
_TUNGETIFF = 0x800454D2
_IFF_UP, _IFF_ALLMULTI = 0x1, 0x200
_MAY = "run as root, or with CAP_NET_ADMIN; some hypervisors have interfaces of type `user`"


def index(name: str) -> int | None:
    """Return the number of an interface in this network namespace, or None when there is none."""
    # Not from /sys: that shows the namespace of whoever mounted it.
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def bring_up(name: str) -> None:
    """Bring an interface up. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _set_flags(control, name, _IFF_UP)


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
    _refuse_taken(tap.name)
    try:
        _make_persistent(tap, owner)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if tap.bridge:
                _join(control, tap.name, tap.bridge)
            _set_flags(control, tap.name, _IFF_UP)
    except PermissionError as error:
        raise HostError(f"no permission to make the tap {tap.name}", hint=_MAY) from error
    except FileNotFoundError as error:
        raise HostError(
            f"could not make the tap {tap.name}: there is no /dev/net/tun",
            hint="load the module: modprobe tun",
        ) from error
    except OSError as error:
        tap_down(tap.name)
        raise files.explain(error, f"make the tap {tap.name}") from error
    except HostError:
        tap_down(tap.name)
        raise
    return index(tap.name) or 0


def tap_down(name: str) -> None:
    """Take a tap away; one that is gone is fine. Raises `HostError`."""
    if index(name) is not None:
        try:
            _let_go(name)
        except OSError as error:
            raise files.explain(error, f"take the tap {name} away") from error


def macvtap_up(macvtap: MacvtapPlan, owner: int) -> int:
    """Make a macvtap that the user id `owner` may open, and bring it up.

    Returns its interface index. Raises `StateError`, `HostError`.
    """
    name, link = macvtap.name, index(macvtap.link)
    _refuse_taken(name)
    if link is None:
        raise HostError(
            f"{name} can't be on {macvtap.link}: there is no such interface",
            hint="`ip link` lists what there is; correct `macvtap.link`",
        )
    try:
        rtnetlink.add_macvtap(name, link=link, mode=macvtap.mode, mac=macvtap.mac)
        made = index(name) or 0
        _quiet(name, made)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            # The guest's multicast groups are not told to the host: it takes all.
            _set_flags(control, name, _IFF_UP | _IFF_ALLMULTI)
        os.chown(_device(made), owner, -1)
    except PermissionError as error:
        macvtap_down(name)
        raise HostError(f"no permission to make the macvtap {name}", hint=_MAY) from error
    except OSError as error:
        macvtap_down(name)
        raise _explain_macvtap(error, macvtap) from error
    return made


def _explain_macvtap(error: OSError, macvtap: MacvtapPlan) -> HostError:
    hints = {
        errno.EOPNOTSUPP: "load the module: modprobe macvtap",
        errno.EBUSY: f"{macvtap.link} belongs to a bridge or the like",
        errno.EINVAL: f"{macvtap.link} has a macvtap of mode passthru, or can't have one",
        errno.ENOENT: "this /dev shows no devices that appear: mount a devtmpfs there",
    }
    what = f"could not make the macvtap {macvtap.name} on {macvtap.link}: {error.strerror}"
    return HostError(what, hint=hints.get(error.errno or 0))


def macvtap_down(name: str) -> None:
    """Take a macvtap away; one that is gone is fine. Raises `HostError`."""
    found = index(name)
    if found is not None:
        try:
            rtnetlink.delete(found)
        except OSError as error:
            raise files.explain(error, f"take the macvtap {name} away") from error


def open_macvtap(name: str, queues: int) -> int:
    """Return a descriptor of one queue of a macvtap that exists; the VMM inherits it.

    Raises `HostError`.
    """
    path = _device(index(name) or 0)
    with ExitStack() as stack:
        try:
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, device)
            found = fcntl.ioctl(device, _TUNGETIFF, bytes(32))[:16].rstrip(b"\0").decode()
            if found != name:  # /dev is common to network namespaces that number alike
                raise HostError(
                    f"{path} is the macvtap {found} of another network namespace, not {name}",
                    hint="mount a devtmpfs of its own at /dev in this one",
                )
            request = struct.pack("16sH14x", name.encode(), _tap_flags(queues))
            fcntl.ioctl(device, _TUNSETIFF, request)
        except OSError as error:
            raise files.explain(error, f"open the macvtap {name}") from error
        stack.pop_all()
    return device


def _device(number: int) -> Path:
    return Path(f"/dev/tap{number}")


def _quiet(name: str, number: int) -> None:
    """Keep the host from taking an IPv6 address there: it would be the guest's, by its MAC."""
    setting = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    if not setting.exists():
        return
    try:
        setting.write_text("1")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        rtnetlink.no_link_local_address(number)  # a container, where that file can't be written


def _refuse_taken(name: str) -> None:
    if index(name) is not None:
        raise StateError(
            f"the interface {name} exists already and may be in use",
            hint=f"take it away (ip link delete {name}), or declare another id",
        )


def open_tap(name: str, queues: int) -> int:
    """Return a descriptor of one queue of a tap that exists; the VMM inherits it.

    Raises `HostError`.
    """
    with ExitStack() as stack:
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, device)
            request = struct.pack("16sH14x", name.encode(), _tap_flags(queues))
            fcntl.ioctl(device, _TUNSETIFF, request)
        except OSError as error:
            raise files.explain(error, f"open the tap {name}") from error
        stack.pop_all()
    return device


def _tap_flags(queues: int) -> int:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    return flags | _IFF_MULTI_QUEUE if queues > 1 else flags


def _make_persistent(tap: TapPlan, owner: int) -> None:
    """Make a tap that outlives the programs that open it."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _tap_flags(tap.queues) | _IFF_TUN_EXCL
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", tap.name.encode(), flags))
        fcntl.ioctl(device, _TUNSETOWNER, owner)
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    finally:
        os.close(device)


def _let_go(name: str) -> None:
    """Take back that a tap outlives its programs, which ends it."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _tap_flags(1)))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # One with several queues (drivers/net/tun.c): the declaration may be another by now.
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _tap_flags(2)))
        fcntl.ioctl(device, _TUNSETPERSIST, 0)
    finally:
        os.close(device)


def _flags(control: socket.socket, name: str) -> int:
    raw = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
    flags: int = struct.unpack("16sH14x", raw)[1]
    return flags


def _set_flags(control: socket.socket, name: str, more: int) -> None:
    flags = _flags(control, name) | more
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags))


def _join(control: socket.socket, name: str, bridge: str) -> None:
    if index(bridge) is None:
        raise HostError(
            f"{name} can't join {bridge}: there is no such bridge",
            hint=f"make it: ip link add {bridge} type bridge",
        )
    request = struct.pack("16si12x", bridge.encode(), index(name) or 0)
    fcntl.ioctl(control, _SIOCBRADDIF, request)
