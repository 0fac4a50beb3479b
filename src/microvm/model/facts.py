"""What a launch has to know about the host, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


def dotted(version: tuple[int, ...]) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An installed program."""

    path: str
    version: tuple[int, ...]
    flavour: str = ""
    """What tells programs of one name apart: `rust` or `c` for virtiofsd."""

    def has(self, since: tuple[int, ...]) -> bool:
        """Return whether it is of a version or a later one; one that tells none counts as later."""
        return not self.version or self.version >= since


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """How virtual CPUs are run here, and why so."""

    kind: Literal["kvm", "tcg"]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host as a machine meets it, known before anything is built."""

    accelerator: Accelerator
    programs: Mapping[str, Program]
    project_dir: str
    """Absolute path that relative sources of shares start at."""
    store_dir: str
    """Absolute path of the directory that holds the store's items."""
    vhost_vsock: bool = False
    """Whether the host's kernel passes vsock on to guests (/dev/vhost-vsock)."""
    vhost_net: bool = False
    """Whether the host's kernel moves packets of guests itself (/dev/vhost-net)."""
    root: bool = False
    """Whether we are root on the host."""
    has_user: bool = True
    """Whether the host has the declared `user`."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why what a key names can't be there or is not there yet, by that key."""
    landlock: int = 0
    """Which landlock(7) the host's kernel has: its ABI's number, 0 for none."""
    hugepage_kib: int = 0
    """Size of the host's huge pages; 0: none, or nobody asked for them."""
    hugepages_free: int | None = None
    """How many of them the host can give; None: nobody asked."""
    hugetlbfs: str | None = None
    """Where a file system of huge pages is mounted that we may write to; asked like `shmem_thp`."""
    shmem_thp: str | None = None
    """What the host says of transparent huge pages in shared memory (shmem_enabled)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(HostFacts):
    """The host as one launch sees it."""

    state_dir: str
    """Absolute path; the VMM's working directory."""
    machine_id: str
    """32 hexadecimal digits that name this machine."""
    secret: str = ""
    """Made anew for each start; what knows it may power the guest off."""
    positions: Mapping[int, str] = field(default_factory=dict)
    """File system of each volume, by its index, that was not made here: found by position."""
    outgrown: tuple[int, ...] = ()
    """Volumes, by their index, whose file system the guest has to grow to the declared size."""
    watched: bool = False
    """Whether a launcher stays beside the VMM."""
    job: bool = False
    """Run a job instead of a login."""
    terminal: tuple[int, int, str] | None = None
    """Rows, columns and TERM of the terminal on the console."""
