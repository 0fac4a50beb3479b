"""How QEMU's command line spells values."""


def escape(text: str) -> str:
    """Double the commas of a value: QEMU's option syntax ends a value at a single one."""
    return text.replace(",", ",,")
