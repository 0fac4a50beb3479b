"""How QEMU's command line spells values."""


def escape(text: str) -> str:
    """Double the commas of a value: QEMU's option syntax ends a value at a single one."""
    return text.replace(",", ",,")


def dashed(identity: str) -> str:
    """Return a machine-id, with or without dashes, as a UUID is written."""
    plain = identity.replace("-", "")
    return f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}"
