"""What the guest's operating system is made of: the declared `system` of a MicroVM."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from microvm.model.constraints import (
    CONTROL,
    STRICT,
    AccountPath,
    Command,
    GuestPath,
    HostPath,
    Line,
    Mode,
    Name,
    PackageName,
    Pattern,
    Text,
    UnitName,
    UserName,
)

Url = Annotated[str, Pattern(rf"(?:https?|file)://[^\s{CONTROL}]+", "an http, https or file URL")]
Component = Annotated[str, Pattern(r"[a-z0-9./-]+", "a component name")]
TimeZone = Annotated[
    str, Pattern(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*", "a time zone such as `Europe/Berlin`")
]
Locale = Annotated[
    str, Pattern(r"[A-Za-z_]+(?:\.[A-Za-z0-9-]+)?(?:@[a-z]+)?", "a locale such as `de_DE.UTF-8`")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account of the guest."""

    __pydantic_config__ = STRICT

    uid: Annotated[int, Ge(0), Le(65533)] | None = None
    """User id; unset takes the next free one from 1000 on."""
    groups: tuple[UserName, ...] = ()
    """Supplementary groups; missing ones are created."""
    shell: AccountPath = "/bin/bash"
    """Login shell."""
    home: AccountPath | None = None
    """Home directory, created with the account; unset means `/home/NAME`, for root `/root`."""
    password_hash: Annotated[str, Pattern(r"[!-9;-~]*", "a crypt(5) hash")] | None = None
    """Password as a crypt(5) hash; unset locks the password. The empty text allows a login without
    one."""
    ssh_authorized_keys: tuple[Line, ...] = ()
    """Public keys that may log in over ssh as this user."""
    sudo: bool = False
    """Allow `sudo` to root without a password; adds the package `sudo`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file, or a tree of files, placed into the guest while it is built."""

    __pydantic_config__ = STRICT

    text: Text | None = None
    """Content. Exactly one of `text` and `source` is given."""
    source: HostPath | None = None
    """File or directory to copy; relative paths start at the project."""
    mode: Mode | None = None
    """Permissions in octal; unset: `0644`, or those of the source."""
    owner: Annotated[
        str,
        Pattern(
            r"(?:[0-9]{1,5}|[a-z_][a-z0-9_-]*)(?::(?:[0-9]{1,5}|[a-z_][a-z0-9_-]*))?",
            "USER or USER:GROUP",
        ),
    ] = "root:root"
    """Owner as `USER` or `USER:GROUP`, names or numbers (up to 65535) of the guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A systemd unit of the guest: written, enabled, extended or masked."""

    __pydantic_config__ = STRICT

    text: Text | None = None
    """Content of the unit file; unset refers to a unit that a package brings."""
    dropin: Text | None = None
    """Content of a drop-in that extends the unit."""
    enable: bool | None = None
    """Enable (true) or disable (false) it; unset: enabled when `text` has an `[Install]`
    section."""
    mask: bool = False
    """Make it impossible to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A further package repository, used while building and left configured in the guest."""

    __pydantic_config__ = STRICT

    url: Url
    """Where the repository is."""
    suite: Annotated[str, Pattern(r"[A-Za-z0-9./_-]+", "a suite name")] | None = None
    """Suite; unset means the guest's release. A suite that ends with `/` is a flat repository."""
    components: tuple[Component, ...] = ("main",)
    """Components to use."""
    key: HostPath | None = None
    """File with the key that signs it (ASCII-armoured or binary); relative to the project."""
    trusted: bool = False
    """Use it without any signature. Anyone on the network path may then change packages."""


KernelFlavour = Literal["cloud", "generic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianSystem:
    """A guest made of Debian (or Ubuntu) packages by mmdebstrap, apt and dpkg."""

    __pydantic_config__ = STRICT

    type: Literal["debian"] = "debian"
    """Guest source."""
    release: Annotated[str, Pattern(r"[a-z][a-z0-9]*", "a release's code name")] = "trixie"
    """Code name of the release: `bookworm`, `trixie`, `sid`, or one of Ubuntu's where its keyring
    is installed."""
    mirror: Url | None = None
    """Mirror to fetch packages from; unset means the default of mmdebstrap for the release."""
    security_mirror: Url | None = None
    """Mirror of the security suite; unset means mmdebstrap's default, or `mirror` with `-security`
    beside it."""
    updates: bool = True
    """Use the release's `-updates` and `-security` suites."""
    components: tuple[Component, ...] = ("main",)
    """Components of the mirror."""
    repositories: tuple[Repository, ...] = ()
    """Further package repositories."""
    packages: tuple[PackageName, ...] = ()
    """Packages to install, with what they depend on; paths of local `.deb` files too."""
    kernel: KernelFlavour | HostPath | None = None
    """`cloud` (small), `generic` (has 9p and the drivers of real devices), or a directory with
    `vmlinuz` and `lib/modules`. Unset: `cloud`, or `generic` where a share needs 9p or a device
    of the host is passed through."""
    hostname: Name | None = None
    """Host name; unset means the MicroVM's name."""
    timezone: TimeZone = "UTC"
    """Time zone."""
    locale: Locale = "C.UTF-8"
    """Locale; one other than `C.UTF-8` adds the package `locales`."""
    users: dict[UserName, User] = field(default_factory=dict)
    """Accounts by name; `root` may be among them."""
    ssh_authorized_keys: tuple[Line, ...] = ()
    """Public keys that may log in over ssh as root; adds the package `openssh-server`."""
    autologin: UserName | Literal[""] = "root"
    """User who is logged in on the console at once; the empty text asks for a name and password."""
    files: dict[GuestPath, File] = field(default_factory=dict)
    """Files and trees by their path in the guest."""
    units: dict[UnitName, Unit] = field(default_factory=dict)
    """systemd units by name."""
    run: tuple[Command, ...] = ()
    """Shell commands run in the guest's root while building, each with `sh -ec`, without
    network."""
    network: bool = False
    """Give the `run` commands a network; such a build is not reproducible."""
    workdir: GuestPath | None = None
    """Directory in which `microvm run REF -- CMD` starts CMD; unset: the user's home."""


System = DebianSystem
