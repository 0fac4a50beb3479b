"""The launch plan: all that starting a VMM takes, before anything has been touched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A program that runs beside the VMM and ends with it."""

    name: str
    argv: tuple[str, ...]
    socket: str
    """Socket, relative to the state directory, made for it: it inherits the listening end as
    `--fd=NUMBER`, so nobody waits for it and it needs no right to the directory."""
    socket_group: str | None = None
    """Group that may connect too."""
    ids: str = ""
    """Run it as root of a user namespace: `store` with the store's id map, for trees of guests;
    `own` with nothing but the invoking user, `host` without another map; empty: as it is."""
    read_only: str | None = None
    """Directory that it must not be able to change, made read-only in its mount namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePlan:
    """A disk image to make where it is missing, to check and to lock."""

    index: int
    image: str
    """Path; relative to the state directory."""
    size_mib: int | None
    fs_type: str
    uuid: str
    label: str | None
    mkfs_args: tuple[str, ...]
    create: bool
    read_only: bool
    root: bool
    """The writable side of the root, pinned to the layers that it was made on."""
    mounted: bool = True
    """Whether the guest's initrd mounts it, and so can grow its file system."""
    image_type: str = "raw"
    """Format of the image; what is inside one of another format than raw is not looked at."""
    guessed: bool = False
    """Whether the VMM takes an image for what its first bytes say, which a guest could have
    written, to read files of the host as if they were its disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapPlan:
    """A tap interface to make before the start and to take away after the end."""

    name: str
    bridge: str | None
    queues: int = 1
    """Queue pairs; more than one makes it a multi-queue tap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MacvtapPlan:
    """A macvtap interface to make before the start and to take away after the end."""

    name: str
    link: str
    """Interface of the host that it is on."""
    mode: str
    mac: str
    """The guest's address, which the host's end has too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A device that the launcher opens and the VMM inherits under a fixed descriptor number."""

    number: int
    """Descriptor number, as the command line names it."""
    kind: Literal["tap", "macvtap"]
    name: str
    """Name of the interface."""
    queues: int = 1
    """How many queue pairs the interface has in all; each descriptor is one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialDisk:
    """A small read-only disk with the guest's credentials, for VMMs without a better way."""

    image: str
    """File to write, relative to the state directory."""
    machine_id: str
    """What its first block names, so that the guest takes no other disk for it."""
    files: Mapping[str, str]
    """Files of the host, by the credentials' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """Where the host meets the job stream of the guest."""

    kind: Literal["connect", "listen", "vsock", "terminal"]
    """`connect`: the VMM listens on `socket`; `listen`: we do, before it starts; `vsock`: we do, on
    the host's vsock; `terminal`: the guest's second serial line is a pseudo-terminal that the VMM
    makes."""
    socket: str = ""
    """Relative to the state directory."""
    port: int = 0
    """Of the host's vsock."""
    context: int = 0
    """The guest's context id: nobody else is let in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPlan:
    """A port of the host that the VMM opens."""

    where: str
    """Key path of the declaration that asks for it."""
    proto: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What to write and execute in the state directory."""

    name: str
    """Name of the MicroVM."""
    hypervisor: str
    """The back end that planned it."""
    process_name: str | None
    """argv[0] of the VMM in the process list."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Files to write, by path relative to the state directory."""
    log: str | None = None
    """File that the VMM logs to, relative to the state directory; made anew before the start."""
    credentials: CredentialDisk | None = None
    helpers: tuple[Helper, ...] = ()
    volumes: tuple[VolumePlan, ...] = ()
    taps: tuple[TapPlan, ...] = ()
    ports: tuple[PortPlan, ...] = ()
    macvtaps: tuple[MacvtapPlan, ...] = ()
    opened: tuple[Opened, ...] = ()
    directories: tuple[str, ...] = ()
    """Directories that the VMM wants to find, relative to the state directory."""
    sockets: tuple[str, ...] = ()
    """Sockets of the VMM, relative to the state directory; stale ones are removed first."""
    locks: tuple[str, ...] = ()
    """Lock files of the VMM, relative to the state directory: one that is dying may have them."""
    control: str | None = None
    """The VMM's control socket, for whoever comes."""
    watch: str | None = None
    """A control socket of its own for a launcher that stays beside the VMM."""
    console: bool = True
    """Whether the guest's console is the VMM's standard input and output."""
    escape: str = ""
    """A byte that the VMM's terminals take for the start of a command to themselves; twice, it
    reaches the guest once."""
    job: JobEnd | None = None
    """The host's end of the job stream."""
    trees: tuple[str, ...] = ()
    """Trees of the store that the VMM itself serves: it runs in a user namespace where their
    owners are the guest's, and may read them; to everything else it is the invoking user."""
    changes_user: bool = False
    """Whether the VMM becomes another user once it has opened what it needs."""
    statuses: Mapping[int, str] = field(default_factory=dict)
    """What exit statuses other than 0 say of the guest: `reboot`, or what went wrong."""
    layers: tuple[str, ...] = ()
    """UUIDs of the root's layers, which a root volume is pinned to."""
    notes: tuple[str, ...] = ()
    """What was chosen and why, for people."""
