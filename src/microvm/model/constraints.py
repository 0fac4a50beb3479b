"""The constraints of declared values, as annotations that pydantic and plain Python both read.

pydantic asks a metadata object for `__get_pydantic_core_schema__`; nothing here imports pydantic.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen

STRICT = {"extra": "forbid", "use_attribute_docstrings": True, "strict": True}
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


NAME_REGEX = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

Name = Annotated[str, Pattern(NAME_REGEX, "1 to 63 lower-case letters, digits and inner hyphens")]
"""A MicroVM's name: also a host name (RFC 1123), a directory and part of unit names."""

MountPoint = Annotated[
    str, Pattern(r"/|(?:/[^/\x00-\x1f\x7f]+)+", "an absolute path without a final slash")
]
HostPath = Annotated[str, Pattern(r"[^\x00-\x1f\x7f]+", "a path without control characters")]
GuestPath = Annotated[
    str, Pattern(r"(?:/[^/\x00-\x1f\x7f]+)+", "an absolute path without control characters")
]
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
Label = Annotated[str, Pattern(r"[A-Za-z0-9_.-]{1,16}", "1 to 16 letters, digits, `_`, `.`, `-`")]
Serial = Annotated[str, Pattern(r"[A-Za-z0-9_.-]{1,20}", "1 to 20 letters, digits, `_`, `.`, `-`")]
"""virtio-blk serial: 20 bytes (VIRTIO 1.2, 5.2.6)."""

UserName = Annotated[
    str, Pattern(r"[a-z_][a-z0-9_-]{0,30}", "a POSIX user name of at most 31 characters")
]
PackageName = Annotated[
    str,
    Pattern(
        r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9]+)?(?:[=/][A-Za-z0-9.+:~-]+)?|[^\x00-\x1f]+\.deb",
        "a Debian package name (also NAME=VERSION) or the path of a `.deb` file",
    ),
]
UnitName = Annotated[
    str,
    Pattern(
        r"[A-Za-z0-9:_.@\\-]+\.(?:service|socket|timer|path|mount|automount|target|slice|swap)",
        "a systemd unit name with its suffix",
    ),
]
CredentialName = Annotated[
    str, Pattern(r"[A-Za-z0-9_.@-]{1,64}", "1 to 64 letters, digits, `_`, `.`, `@`, `-`")
]
Mode = Annotated[str, Pattern(r"[0-7]{3,4}", "three or four octal digits, as a string")]
KernelParameter = Annotated[
    str, Pattern(r"[\x21-\x7e]+", "one kernel parameter: printable ASCII without spaces")
]
Port = Annotated[int, Ge(1), Le(65535)]
Positive = Annotated[int, Gt(0)]
NotNegative = Annotated[int, Ge(0)]
Text = Annotated[str, MinLen(1)]
Line = Annotated[str, Pattern(r"[^\x00-\x1f\x7f]+", "one line of text")]
