"""The peers' programs: which are there, and the two that build a Debian root."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bench import RELEASE
from bench.measure import PeerError

INSTALL = "make bench-peers installs it"
OLDEST_MKOSI = 20
"""Older ones read another configuration and use debootstrap."""


def run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a peer to its end; raise `PeerError` with its last words."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise PeerError(f"{argv[0]} failed: {words[-1][:200]}")
    return done.stdout


def version(program: str) -> str:
    """Return the version of the Debian package that a program is of, or the empty text."""
    path = shutil.which(program)
    if path is None:
        return ""
    found = subprocess.run(
        ["dpkg-query", "-S", path, str(Path(path).resolve())], capture_output=True, text=True
    )
    package = found.stdout.partition(":")[0]
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True
    )
    return shown.stdout.strip()


def require(program: str) -> None:
    """Raise `PeerError` where a peer is not installed."""
    if shutil.which(program) is None:
        raise PeerError(f"{program} is not installed ({INSTALL})")


@dataclass(frozen=True)
class Packages:
    """The Debian packages of a guest, from its lock, for the peers to install the same."""

    names: tuple[str, ...]
    archives: Path
    """Directory that holds them all, named as apt names them."""
    mirror: str

    @classmethod
    def of(cls, lock_file: Path, microvm: str, store: Path, archives: Path) -> "Packages":
        """Collect those of one MicroVM but its kernel's."""
        lock: dict[str, Any] = json.loads(lock_file.read_text())
        layers = lock["microvms"][microvm]["layers"]
        keys = [key for layer in layers if layer["name"] != "kernel" for key in layer["packages"]]
        archives.mkdir(exist_ok=True)
        packages = [lock["packages"][key] for key in keys]
        for package in packages:
            version = package["version"].replace(":", "%3a")
            name = f"{package['name']}_{version}_{package['architecture']}.deb"
            shutil.copyfile(store / ".packages" / f"{package['sha256']}.deb", archives / name)
        pools = (re.match(r"(.*/debian)/pool/", package["url"]) for package in packages)
        mirror = next(found[1] for found in pools if found)
        return cls(tuple(package["name"] for package in packages), archives, mirror)


@dataclass(frozen=True)
class Mmdebstrap:
    """mmdebstrap, then mkfs.erofs, with packages that are there already."""

    packages: Packages
    root: Path

    def build(self) -> None:
        """Make the root as a directory and an image of it, as a user would type it."""
        hook = f"mkdir -p $1/var/cache/apt/archives; cp {self.packages.archives}/*.deb $1/var/cache/apt/archives"
        run([
            "mmdebstrap", "--variant=essential", f"--include={','.join(self.packages.names)}",
            "--skip=essential/unlink", "--skip=download/empty", f"--setup-hook={hook}",
            RELEASE, str(self.root),
        ])  # fmt: skip
        run(["mkfs.erofs", f"{self.root}.erofs", str(self.root)])

    def clear(self) -> None:
        """Delete what an earlier build made."""
        if self.root.exists():
            shutil.rmtree(self.root)
        Path(f"{self.root}.erofs").unlink(missing_ok=True)


@dataclass(frozen=True)
class Mkosi:
    """mkosi with its incremental mode: packages installed once, extra files copied each time."""

    directory: Path

    @classmethod
    def prepare(cls, packages: Packages, directory: Path) -> "Mkosi":
        """Write the configuration and build once, which fills the caches. Raises `PeerError`."""
        require("mkosi")
        words = run(["mkosi", "--version"]).split()
        number = words[1] if len(words) > 1 else ""
        if not number.partition(".")[0].isdigit() or int(number.partition(".")[0]) < OLDEST_MKOSI:
            raise PeerError(f"mkosi {number} is older than {OLDEST_MKOSI}")
        for name in ("out", "cache", "pkgcache", "mkosi.extra/etc"):
            (directory / name).mkdir(parents=True)
        names = "".join(f"    {name}\n" for name in packages.names)
        # LocalMirror: without it mkosi also asks for debian-debug, which mirrors lack.
        (directory / "mkosi.conf").write_text(
            f"[Distribution]\nDistribution=debian\nRelease={RELEASE}\nLocalMirror={packages.mirror}\n"
            "[Output]\nFormat=directory\nOutputDirectory=out\nCacheDirectory=cache\n"
            "PackageCacheDirectory=pkgcache\n"
            f"[Content]\nBootable=no\nPackages=\n{names}"
        )
        mkosi = cls(directory)
        mkosi.change("nothing yet")
        mkosi.build()
        return mkosi

    def change(self, text: str) -> None:
        """Change the one file."""
        (self.directory / "mkosi.extra/etc/x").write_text(text)

    def build(self) -> None:
        """Build again with what is cached. Raises `PeerError`."""
        run(["mkosi", "-i", "-f", "build"], cwd=self.directory)
