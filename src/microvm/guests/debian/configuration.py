"""The configuration layer: what a declaration says about files, accounts, units and names.

`collect` turns the declaration into plain data on the host; `write` applies it in the namespace.
"""

import base64
import hashlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

from microvm.errors import MicroVMError
from microvm.guests.debian import chroot, runtime
from microvm.guests.debian.accounts import Accounts
from microvm.host.files import explain
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM
from microvm.model.guest import SystemLock
from microvm.model.system import Unit

UNIT_DIRECTORY = "/etc/systemd/system"


def collect(
    name: str, microvm: MicroVM, lock: SystemLock, description: str, project_dir: Path
) -> dict[str, Any]:
    """Return all that the configuration layer holds, as plain data in a fixed order.

    Raises `HostError` for a key that can't be read.
    """
    system = microvm.system
    installed = frozenset(package.name for layer in lock.layers for package in layer.packages)
    fixed = runtime.contents(name, microvm, installed=installed, description=description)
    hostname = system.hostname or name
    files = dict(fixed.files)
    files["/etc/hostname"] = (f"{hostname}\n".encode(), 0o644)
    files["/etc/hosts"] = (_hosts(hostname), 0o644)
    files["/etc/default/locale"] = (f"LANG={system.locale}\n".encode(), 0o644)
    files["/etc/timezone"] = (f"{system.timezone}\n".encode(), 0o644)
    if "apt" in installed:
        files["/etc/apt/sources.list.d/microvm.sources"] = (lock.sources.encode(), 0o644)
        for repository in system.repositories:
            if repository.key:
                files[guest_key(repository.key)] = (_key(project_dir / repository.key), 0o644)
    if system.workdir:
        files["/etc/microvm/workdir"] = (f"{system.workdir}\n".encode(), 0o644)
    for user, keys in _keys(microvm).items():
        files[f"/etc/ssh/authorized_keys/{user}"] = (keys.encode(), 0o644)
    links = {**fixed.links, "/etc/localtime": f"/usr/share/zoneinfo/{system.timezone}"}
    if system.timezone == "UTC":
        del links["/etc/localtime"]  # nothing there means UTC, localtime(5)
    systemctl: list[tuple[str, str]] = []
    for unit_name, unit in system.units.items():
        _unit(unit_name, unit, files, links, systemctl)
    users = {user: to_plain(entry, defaults=True) for user, entry in system.users.items()}
    if any(entry.sudo for entry in system.users.values()):
        files["/etc/sudoers.d/microvm"] = (b"%sudo ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
    return {
        "files": {p: [base64.b64encode(d).decode(), m] for p, (d, m) in sorted(files.items())},
        "links": dict(sorted(links.items())),
        "directories": fixed.directories,
        "users": users,
        "declared": {path: to_plain(file, defaults=True) for path, file in system.files.items()},
        "systemctl": systemctl,
        "locale": system.locale if system.locale not in ("C.UTF-8", "C", "POSIX") else "",
        "workdir": system.workdir,
        "timezone": system.timezone,
        "autologin": system.autologin,
        "network": system.network,
    }


def guest_key(key: str) -> str:
    """Return where the guest keeps a declared repository's key."""
    # apt tells an armoured key from a binary one by the name's end.
    return f"/etc/apt/keyrings/{Path(key).name}"


def _key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise explain(error, f"read the repository's key {path}") from error


def _hosts(hostname: str) -> bytes:
    return f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost\n".encode()


def _keys(microvm: MicroVM) -> dict[str, str]:
    keys = {name: user.ssh_authorized_keys for name, user in microvm.system.users.items()}
    keys["root"] = (*keys.get("root", ()), *microvm.system.ssh_authorized_keys)
    return {name: "".join(f"{key}\n" for key in lines) for name, lines in keys.items() if lines}


def _unit(
    name: str,
    unit: Unit,
    files: dict[str, tuple[bytes, int]],
    links: dict[str, str],
    systemctl: list[tuple[str, str]],
) -> None:
    path = f"{UNIT_DIRECTORY}/{name}"
    if unit.mask:
        links[path] = "/dev/null"
        return
    if unit.text is not None:
        links.pop(path, None)
        files[path] = (unit.text.encode(), 0o644)
    elif links.get(path) == "/dev/null":
        del links[path]  # declared: the user wants what we would have masked
    if unit.dropin is not None:
        files[f"{path}.d/declared.conf"] = (unit.dropin.encode(), 0o644)
    enable = unit.enable
    if enable is None and "[Install]" in (unit.text or ""):
        enable = True
    if enable is not None:
        systemctl.append(("enable" if enable else "disable", name))


def write(root: Path, contents: dict[str, Any], paths: dict[str, Path]) -> None:
    """Apply collected contents to a root. Raises `MicroVMError`, `OSError`."""
    for path, mode in contents["directories"].items():
        _inside(root, path).mkdir(parents=True, exist_ok=True, mode=mode)
    accounts = _accounts(root, contents)
    for path, (data, mode) in contents["files"].items():
        _place(root, path).write_bytes(base64.b64decode(data))
        _inside(root, path).chmod(mode)
    for path, target in contents["links"].items():
        _place(root, path).symlink_to(target)
    for number, (path, file) in enumerate(contents["declared"].items()):
        source = paths["sources"] / f"{number}.tar" if file["source"] else None
        _declared(root, path, file, source, accounts)
    if contents["workdir"]:
        _parents(_inside(root, contents["workdir"]) / "inside")


def _accounts(root: Path, contents: dict[str, Any]) -> Accounts:
    accounts = Accounts.read(root)
    for name, user in contents["users"].items():
        accounts.add(name, user)
    if contents["users"]:
        accounts.save()
    for name in contents["users"]:
        _home(root, accounts, name)
    if contents["autologin"] and contents["autologin"] not in accounts.passwd:
        raise MicroVMError(
            f"system.autologin: the guest has no user {contents['autologin']!r}",
            hint="declare it under system.users",
        )
    zone = contents["timezone"]
    if zone != "UTC" and not _inside(root, f"/usr/share/zoneinfo/{zone}").exists():
        raise MicroVMError(
            f"system.timezone: the guest knows no {zone!r}",
            hint="names are as in `timedatectl list-timezones`",
        )
    return accounts


def _inside(root: Path, path: str) -> Path:
    """Return where an absolute guest path lies, following the root's own links, never out of it."""
    current = root
    parts = [part for part in path.split("/") if part]
    for depth, part in enumerate(parts):
        if part == "..":
            raise MicroVMError(f"{path}: a path in the guest can't contain `..`")
        current = current / part
        for _ in range(40):
            if depth == len(parts) - 1 or not current.is_symlink():
                break
            target = str(current.readlink())
            base = root if target.startswith("/") else current.parent
            current = Path(os.path.normpath(base / target.lstrip("/")))
            if root not in (current, *current.parents):
                current = root / current.name
    return current


def _place(root: Path, path: str) -> Path:
    """Return the path with its directory made and nothing at its place."""
    target = _inside(root, path)
    _parents(target)
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        raise MicroVMError(f"the file {path} can't replace a directory of the guest")
    return target


def _parents(path: Path) -> None:
    """Make the directories that lead to a path, owned like the nearest that is there."""
    missing = []
    parent = path.parent
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    owner = parent.stat()
    for directory in reversed(missing):
        directory.mkdir()
        os.chown(directory, owner.st_uid, owner.st_gid)


def _home(root: Path, accounts: Accounts, name: str) -> None:
    entry = accounts.passwd[name]
    home = _inside(root, entry[5])
    if home.exists():
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    skeleton = root / "etc/skel"
    if skeleton.is_dir():
        shutil.copytree(skeleton, home, symlinks=True)
    else:
        home.mkdir()
    home.chmod(0o700)
    for path in (home, *home.rglob("*")):
        os.chown(path, int(entry[2]), int(entry[3]), follow_symlinks=False)


def archive(source: Path, target: Path) -> str:
    """Write a declared source as a tar archive that only its contents shape; return its SHA-256.

    Modes are kept, owners and times are not. A namespace could not read a file of mode 0600.
    Raises `MicroVMError` for anything but files, directories and links.
    """

    def neutral(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
            raise MicroVMError(f"{source}: only files, directories and links can be copied")
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(source.resolve(strict=True), arcname=".", filter=neutral)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _declared(
    root: Path, path: str, file: dict[str, Any], source: Path | None, accounts: Accounts
) -> None:
    try:
        uid, gid = accounts.owner(file["owner"])
    except MicroVMError as error:
        raise MicroVMError(f"system.files.{path}: {error.message}", hint=error.hint) from error
    mode = int(file["mode"], 8) if file["mode"] else None
    if source is None:
        target = _place(root, path)
        target.write_text(file["text"])
        os.chown(target, uid, gid)
        target.chmod(0o644 if mode is None else mode)
        return
    with tarfile.open(source) as tar:
        for member in tar:
            inner = os.path.normpath(member.name)
            where = path if inner == "." else f"{path}/{inner}"
            _member(root, where, tar, member, (uid, gid))
            if mode is not None and inner == ".":
                _inside(root, where).chmod(mode)


def _member(
    root: Path, path: str, tar: tarfile.TarFile, member: tarfile.TarInfo, owner: tuple[int, int]
) -> None:
    if member.isdir():
        target = _inside(root, path)
        target.mkdir(parents=True, exist_ok=True)
    else:
        target = _place(root, path)
        if member.issym():
            target.symlink_to(member.linkname)
        elif data := tar.extractfile(member):
            with target.open("wb") as out:
                shutil.copyfileobj(data, out)
    os.chown(target, *owner, follow_symlinks=False)
    if not member.issym():
        target.chmod(member.mode)


def make_locale(root: Path, locale: str, date: int) -> None:
    """Compile the locale with the guest's own tools."""
    if not locale:
        return
    plain, _, modifier = locale.partition("@")
    language, _, charset = plain.partition(".")
    source = f"{language}@{modifier}" if modifier else language
    argv = ["localedef", "-i", source, "-f", charset or "UTF-8", locale]
    chroot.run(root, argv, date=date, doing=f"compile the locale {locale}")
