"""The disk that brings credentials to a guest: a block that names it, then a tar archive."""

import io
import tarfile
from pathlib import Path

from microvm.errors import HostError
from microvm.host import files
from microvm.model.plan import CredentialDisk

BLOCK = 512
LARGEST = 1 << 20
"""Bytes of a credential that systemd takes (CREDENTIAL_SIZE_MAX)."""


def write(disk: CredentialDisk, state_dir: Path) -> None:
    """Write the disk's image, for its owner only. Raises `HostError`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sorted(disk.files.items()):
            data = _read(name, Path(path))
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o400, len(data)
            tar.addfile(entry, io.BytesIO(data))
    head = f"microvm-credentials {disk.machine_id}\n".encode().ljust(BLOCK, b"\0")
    files.write_atomic(state_dir / disk.image, head + archive.getvalue(), 0o600)


def _read(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise files.explain(error, f"read the credential {name}") from error
    if len(data) > LARGEST:
        raise HostError(
            f"the credential {name} is too large: {path} has more than {LARGEST} bytes",
            hint="systemd takes none larger; use a volume or a share",
        )
    return data
