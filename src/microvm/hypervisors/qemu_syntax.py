"""How QEMU's command line spells values."""

FORMATS = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx"}
"""QEMU's names of image types; always said: guessed, a guest could choose it by what it writes."""


def escape(text: str) -> str:
    """Double the commas of a value: QEMU's option syntax ends a value at a single one."""
    return text.replace(",", ",,")
