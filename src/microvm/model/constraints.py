"""The constraints of declared values, as annotations that pydantic and plain Python both read.

pydantic asks a metadata object for `__get_pydantic_core_schema__`; nothing here imports pydantic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MaxLen

STRICT = {"extra": "forbid", "strict": True}
"""pydantic configuration of every declared class: unknown keys refused, no coercion."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """The whole text matches a regular expression (Rust `regex` syntax, anchored by itself)."""

    regex: str
    says: str
    """What is allowed, in words, for the message."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = dict(handler(source))
        schema["pattern"] = f"^(?:{self.regex})$"
        # A tuple of patterns would need a validator; one pattern a value is enough here.
        schema["metadata"] = {**schema.get("metadata", {}), "microvm_says": self.says}
        return schema


@dataclass(frozen=True, slots=True)
class Check:
    """A value that `refusal` says nothing about; its words end up in the message."""

    refusal: Callable[[Any], str | None]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": self._checked},
            "schema": handler(source),
        }

    def _checked(self, value: Any) -> Any:
        if why := self.refusal(value):
            raise ValueError(why)
        return value


LEAST_MIB = 32
"""Memory below which no guest lives."""
NAME_MAX = 255
PATH_MAX = 4095
"""What Linux takes: bytes of one name, of a whole path less the final NUL (limits.h)."""
DEPTH = 32
"""How deep tables and lists may be nested; the model itself needs seven levels."""
NUMBER = 2**63


def too_long(path: str) -> str | None:
    """Say why Linux takes no such path, or None."""
    if len(path.encode()) > PATH_MAX:
        return f"a path has at most {PATH_MAX} bytes"
    if any(len(part.encode()) > NAME_MAX for part in path.split("/")):
        return f"a name in a path has at most {NAME_MAX} bytes"
    return None


def not_plain(value: Any, depth: int = 0) -> str | None:
    """Say why JSON and every program that reads it can't take the value, or None."""
    if depth > DEPTH:
        return f"it is nested deeper than {DEPTH} levels"
    if isinstance(value, dict):
        inner = [*value, *value.values()]
        if not all(isinstance(key, str) for key in value):
            return "a table's keys are texts"
    elif isinstance(value, list | tuple):
        inner = list(value)
    elif isinstance(value, str):
        return None if _is_unicode(value) else "it is not Unicode text"
    elif value is None or isinstance(value, bool):
        return None
    elif isinstance(value, int):
        return None if -NUMBER <= value < NUMBER else "a number has at most 64 bits"
    elif isinstance(value, float):
        return None if math.isfinite(value) else "a number is finite"
    else:
        return f"a {type(value).__name__} is none of text, number, true, false, list and table"
    return next(filter(None, (not_plain(item, depth + 1) for item in inner)), None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


FITS = Check(too_long)
PLAIN = Check(not_plain)

CONTROL = r"\x00-\x1f\x7f-\x9f" "\u2028\u2029"
"""Control characters, and what else some programs take for the end of a line."""


def part_regex(also: str = "") -> str:
    """Return what matches one name of a path: no `.`, no `..`, no control character."""
    but = f"/{also}{CONTROL}"
    return rf"(?:[^.{but}][^{but}]*|\.[^.{but}][^{but}]*|\.\.[^{but}]+)"


NAME_REGEX = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

Name = Annotated[str, Pattern(NAME_REGEX, "1 to 63 lower-case letters, digits and inner hyphens")]
"""A MicroVM's name: also a host name (RFC 1123), a directory and part of unit names."""

_ABSOLUTE = "an absolute path without `.`, `..`, final slash and control characters"

MountPoint = Annotated[str, Pattern(rf"/|(?:/{part_regex()})+", _ABSOLUTE), FITS]
HostPath = Annotated[str, Pattern(f"[^{CONTROL}]+", "a path without control characters"), FITS]
GuestPath = Annotated[str, Pattern(f"(?:/{part_regex()})+", _ABSOLUTE), FITS]
AccountPath = Annotated[
    str, Pattern(f"(?:/{part_regex(':')})+", f"{_ABSOLUTE}, and without a colon"), FITS
]
"""A path in passwd(5), whose fields end with a colon."""
Tag = Annotated[
    str, Pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}", "1 to 31 letters, digits, `_`, `.`, `-`")
]
"""Mount tag; virtio-fs has 36 bytes for it, 9p 31 in all hypervisors."""

InterfaceName = Annotated[
    str, Pattern(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", "1 to 15 letters, digits, `_`, `.`, `-`")
]
Mac = Annotated[
    str, Pattern(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", "six hexadecimal bytes with colons")
]
Label = Annotated[
    str,
    Pattern(
        r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,15}", "1 to 16 letters, digits, `_`, `.`, and not first `-`"
    ),
]
Serial = Annotated[str, Pattern(r"[A-Za-z0-9_.-]{1,20}", "1 to 20 letters, digits, `_`, `.`, `-`")]
"""virtio-blk serial: 20 bytes (VIRTIO 1.2, 5.2.6)."""

HostAccount = Annotated[
    str, Pattern(r"[a-z_][a-z0-9_-]{0,31}", "the name of a user or group of the host")
]
UserName = Annotated[
    str, Pattern(r"[a-z_][a-z0-9_-]{0,30}", "a POSIX user name of at most 31 characters")
]
PackageName = Annotated[
    str,
    Pattern(
        # Without a final hyphen: to apt-get, `NAME-` means to remove NAME.
        r"[a-z0-9](?:[a-z0-9+.-]*[a-z0-9+.])?(?::[a-z0-9]+)?(?:[=/][A-Za-z0-9.+:~-]*[A-Za-z0-9.+~])?"
        rf"|[^{CONTROL}]+\.deb",
        "a Debian package name (also NAME=VERSION) or the path of a `.deb` file",
    ),
    FITS,
]
UnitName = Annotated[
    str,
    Pattern(
        r"[A-Za-z0-9:_.@\\-]{1,200}\.(?:service|socket|timer|path|mount|automount|target|slice|swap)",
        "a systemd unit name with its suffix",
    ),
]
CredentialName = Annotated[
    str,
    Pattern(
        r"[A-Za-z0-9_@][A-Za-z0-9_.@-]{0,63}",
        "1 to 64 letters, digits, `_`, `@`, and not first `.`, `-`",
    ),
]
Mode = Annotated[str, Pattern(r"[0-7]{3,4}", "three or four octal digits, as a string")]
KernelParameter = Annotated[
    str,
    # A quote would join it with the words after it.
    Pattern(
        r"[\x21\x23-\x26\x28-\x7e]+",
        "one kernel parameter: printable ASCII without spaces and quotes",
    ),
]
Port = Annotated[int, Ge(1), Le(65535)]
Cpus = Annotated[int, Ge(1), Le(255)]
"""An 8-bit APIC id names 255 of them; the last one means all (Intel SDM 3A, chapter 12)."""
Memory = Annotated[int, Ge(0), Le(2**24)]
"""MiB up to 16 TiB, more than hosts have; far from where sizes in bytes overflow."""
DiskSize = Annotated[int, Gt(0), Le(2**26)]
"""MiB up to 64 TiB; ext4 takes files of 16 TiB."""
Line = Annotated[str, Pattern(f"[^{CONTROL}]+", "one line of text"), MaxLen(8192)]
Command = Annotated[str, Pattern(r"[^\x00]*", "a text without NUL"), MaxLen(30000)]
"""A command handed to a shell: Linux takes 131072 bytes an argument (MAX_ARG_STRLEN)."""
Text = Annotated[str, PLAIN]
"""Any text: lone surrogates, which Python has in undecodable words, are none."""
Json = Annotated[Any, PLAIN]
"""A value as JSON has them."""
