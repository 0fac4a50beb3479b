"""Network interfaces made and removed by rtnetlink(7), for what no ioctl can."""

import os
import socket
import struct

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO = 1, 3, 5, 18
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 26, 8, 1
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_MACVLAN_MODE = 1
_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
"""linux/if_link.h, enum macvlan_mode."""


def add_macvtap(name: str, *, link: int, mode: str, mac: str) -> None:
    """Make a macvtap on the interface with the index `link`. Raises `OSError`."""
    data = _attribute(_IFLA_MACVLAN_MODE, struct.pack("=I", _MODES[mode]))
    info = _attribute(_IFLA_INFO_KIND, b"macvtap") + _attribute(_IFLA_INFO_DATA, data)
    attributes = (
        _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        + _attribute(_IFLA_LINK, struct.pack("=I", link))
        + _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        + _attribute(_IFLA_LINKINFO, info)
    )
    _request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, _interface(0) + attributes)


def no_link_local_address(index: int) -> None:
    """Keep the kernel from giving an interface an IPv6 address of its own. Raises `OSError`."""
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, struct.pack("=B", _ADDR_GEN_MODE_NONE))
    spec = _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode))
    _request(_RTM_NEWLINK, 0, _interface(index) + spec)


def delete(index: int) -> None:
    """Remove the interface with this index. Raises `OSError`."""
    _request(_RTM_DELLINK, 0, _interface(index))


def _interface(index: int) -> bytes:
    """Return a struct ifinfomsg: family, type, index, flags, and which flags to change."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _request(kind: int, flags: int, payload: bytes) -> None:
    """Send one request and raise what the kernel answers."""
    head = struct.pack("=IHHII", 16 + len(payload), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.sendto(head + payload, (0, 0))
        answer = kernel.recv(8192)
    _, answered, _, _, _, code = struct.unpack_from("=IHHIIi", answer)
    if answered == _NLMSG_ERROR and code:
        raise OSError(-code, os.strerror(-code))
