"""Credentials of guests: what systemd takes, and the disk that brings them.

The disk is a block that names it, then a tar archive.
"""

import io
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from microvm.errors import HostError, Problem
from microvm.host import files
from microvm.model.plan import CredentialDisk

BLOCK = 512
LARGEST = 1 << 20
"""Bytes that systemd takes of one credential, and of all together (CREDENTIAL_SIZE_MAX,
CREDENTIALS_TOTAL_SIZE_MAX); it leaves out what goes beyond, by a line in the guest's log."""
_INSTEAD = "use a volume or a share for what is large"


def problems(found: Mapping[str, Path]) -> Iterator[Problem]:
    """Yield what keeps files, by the name of the credential, from reaching a guest."""
    total = 0
    for name, path in found.items():
        where = f"credential_files.{name}"
        if why := files.obstacle(path, stat.S_ISREG):
            yield Problem(where=where, message=why)
            continue
        size = path.stat().st_size
        if size > LARGEST:
            yield Problem(where=where, message=_too_large(path), hint=_INSTEAD)
        else:
            total += size
    if total > LARGEST:
        message = f"systemd takes {LARGEST} bytes of credentials in all, these are {total}"
        yield Problem(where="credential_files", message=message, hint=_INSTEAD)


def _too_large(path: Path) -> str:
    return f"{path} has more than the {LARGEST} bytes that systemd takes of a credential"


def write(disk: CredentialDisk, state_dir: Path) -> None:
    """Write the disk's image, for its owner only. Raises `HostError`."""
    import tarfile  # 20 ms that few need

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
        raise HostError(f"the credential {name} is too large: {_too_large(path)}", hint=_INSTEAD)
    return data
