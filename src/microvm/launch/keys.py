"""The escape key: what is typed goes to the guest, unless it follows Ctrl-]."""

from dataclasses import dataclass

ESCAPE = 0x1D
"""Ctrl-]"""
HELP = "Ctrl-] then q ends it at once, Ctrl-] then s shuts it down, Ctrl-] twice types Ctrl-]"


def doubled(data: bytes, escape: bytes) -> bytes:
    """Return the bytes as a terminal takes them that has an escape byte of its own, or none."""
    return data.replace(escape, escape * 2) if escape else data


@dataclass(slots=True)
class Keys:
    """Tells what is for the guest from what is for us."""

    _escaped: bool = False

    def feed(self, data: bytes) -> tuple[bytes, str]:
        """Return the bytes for the guest, and the letters of `q` and `s` that followed Ctrl-]."""
        passed, commands = bytearray(), ""
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in b"qQsS":
                    commands += chr(byte).lower()
                else:
                    passed.append(byte)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                passed.append(byte)
        return bytes(passed), commands
