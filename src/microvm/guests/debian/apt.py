"""apt-get with a configuration, lists and a package database of our own, never the host's."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from microvm.errors import CommandFailed, DeadlineExceeded, MicroVMError
from microvm.guests.debian.sources import Source
from microvm.host import process
from microvm.model.guest import LockedPackage

UPDATE_TIMEOUT_S = 300
SOLVE_TIMEOUT_S = 120

_HOST_SETTINGS = re.compile(
    r"^(Acquire::(?:https?|ftp)(?:::|\s)|Acquire::Check-(?:Date|Valid-Until))"
)
_UNKNOWN = re.compile(
    r"Unable to locate package (?P<a>\S+)|Package '?(?P<b>[^\s']+)'? has no installation candidate"
    r"|for '(?P<c>[^\s']+)' was not found"
)
"""What apt says about a package or version that there isn't."""
_URI = re.compile(r"^'(?P<url>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")


@dataclass(frozen=True, slots=True)
class Apt:
    """One apt universe: sources, the lists fetched from them, a database of what is installed."""

    directory: Path
    """Private directory for configuration and the package database."""
    lists: Path
    """Package lists; may be shared by universes of the same sources."""

    @classmethod
    def prepare(
        cls, directory: Path, lists: Path, sources: Iterable[Source], architecture: str
    ) -> "Apt":
        """Write the configuration below `directory`."""
        apt = cls(directory, lists)
        for path in (directory / "cache/archives/partial", directory / "empty", lists / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        text = "\n".join(source.paragraph() for source in sources)
        listed = directory / "all.sources"
        listed.write_text(text)
        # apt takes a cache older than this file for stale; lists of other sources lie elsewhere.
        os.utime(listed, (0, 0))
        settings = {
            "Dir": f"{directory}/",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": f"{directory}/empty",
            "Dir::Etc::sourcelist": f"{directory}/all.sources",
            "Dir::Etc::sourceparts": f"{directory}/empty",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": f"{directory}/empty",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": f"{directory}/empty",
            "Dir::State": str(directory),
            "Dir::State::lists": str(lists),
            "Dir::State::status": f"{directory}/status",
            "Dir::Cache": f"{directory}/cache",
            # What apt makes of the lists alone, kept beside them for the next universe.
            "Dir::Cache::srcpkgcache": f"{lists}/srcpkgcache.bin",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::Languages": "none",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "12",
            "Acquire::https::Timeout": "12",
            # apt counts itself as essential otherwise (apt-pkg/pkgcachegen.cc).
            "pkgCacheGen::ForceEssential": ",",
            # An unknown name with a `.` in it would be taken for a regular expression.
            "APT::Cmd::Pattern-Only": "true",
        }
        lines = [f'{key} "{value}";\n' for key, value in settings.items()]
        (directory / "apt.conf").write_text("".join([*_host_settings(), *lines]))
        return apt

    @property
    def env(self) -> dict[str, str]:
        """The environment that makes apt's programs use this universe."""
        return {"APT_CONFIG": str(self.directory / "apt.conf")}

    def _run(self, argv: Sequence[str], timeout_s: float, doing: str) -> str:
        package = "dpkg" if argv[0].startswith("dpkg") else "apt"
        words = [str(process.require_program(argv[0], package)), *argv[1:]]
        done = process.run(words, timeout_s=timeout_s, env=self.env, check=False, doing=doing)
        if done.returncode != 0:
            said = _unmet(done.stdout) + _complaints(done.stderr)
            raise CommandFailed(f"could not {doing}:{said}", argv=argv, returncode=done.returncode)
        return done.stdout.decode(errors="replace")

    def update(self) -> None:
        """Fetch the package lists. Raises `CommandFailed` with apt's words."""
        # apt tries each repository in turn, twice: a mirror that stalls takes all of that time.
        argv = ["apt-get", "update", "-qq", "--error-on=any", "-oAcquire::Retries=0"]
        try:
            self._run(argv, UPDATE_TIMEOUT_S, "fetch the package lists")
        except (CommandFailed, DeadlineExceeded) as error:
            error.hint = (
                "check the network, and `release`, `mirror` and `repositories` of the system; "
                "the same command again goes on"
            )
            raise
        self._check_components()

    def _check_components(self) -> None:
        """Raise for a component that no repository has: apt only warns."""
        offered = {
            component.rpartition("/")[2]
            for path in self._releases()
            for component in _field(path, "Components").split()
        }
        for line in (self.directory / "all.sources").read_text().splitlines():
            for wanted in line.removeprefix("Components:").split() if line[:4] == "Comp" else ():
                if offered and wanted.rpartition("/")[2] not in offered:
                    raise MicroVMError(
                        f"no repository has the component {wanted!r}",
                        hint=f"they have {', '.join(sorted(offered))}",
                    )

    def _releases(self) -> list[Path]:
        return sorted((*self.lists.glob("*_InRelease"), *self.lists.glob("*_Release")))

    def states(self) -> dict[str, str]:
        """Return the SHA-256 of each repository's signed Release file, by its file name."""
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._releases()
        }

    def date(self) -> int:
        """Return the newest date of the Release files as Unix time."""
        dates = [_field(path, "Date") for path in self._releases()]
        return max(
            (int(parsedate_to_datetime(date).timestamp()) for date in dates if date), default=0
        )

    def solve(self, wanted: Sequence[str]) -> tuple[LockedPackage, ...]:
        """Return the packages that installing `wanted` adds to the database, sorted by name.

        Raises `MicroVMError` for an unknown package or conflict.
        """
        if not wanted:
            return ()
        argv = ["apt-get", "-y", "-q", "--no-remove", "--print-uris", "install", "--", *wanted]
        try:
            printed = self._run(argv, SOLVE_TIMEOUT_S, f"resolve the packages {' '.join(wanted)}")
        except CommandFailed as error:
            raise MicroVMError(error.message, hint=self._nearest(error.message)) from error
        return _parse_uris(printed)

    def locate(self, names: Sequence[str]) -> tuple[LockedPackage, ...]:
        """Return these packages alone, without what they depend on."""
        argv = ["apt-get", "-q", "--print-uris", "download", "--", *names]
        try:
            return _parse_uris(self._run(argv, SOLVE_TIMEOUT_S, f"find {' '.join(names)}"))
        except CommandFailed as error:
            raise MicroVMError(error.message, hint=self._nearest(error.message)) from error

    def closure(self, name: str, pattern: re.Pattern[str]) -> set[str]:
        """Return the dependencies of `name`, and theirs, whose names match the pattern."""
        found: set[str] = set()
        queue = [name]
        while queue:
            shown = self._run(
                ["apt-cache", "show", "--no-all-versions", queue.pop()],
                SOLVE_TIMEOUT_S,
                "read what the kernel depends on",
            )
            for line in shown.splitlines():
                if line.startswith(("Depends:", "Pre-Depends:")):
                    new = {word.rstrip(",") for word in line.split()[1:]} - found
                    fresh = {word for word in new if pattern.fullmatch(word)}
                    found |= fresh
                    queue += fresh
        return found

    def _nearest(self, message: str) -> str | None:
        unknown = [found["a"] or found["b"] or found["c"] for found in _UNKNOWN.finditer(message)]
        if not unknown:
            return None
        import difflib

        names = self._run(["apt-cache", "pkgnames"], SOLVE_TIMEOUT_S, "list packages").split()
        hints = []
        for asked in dict.fromkeys(unknown):
            near = difflib.get_close_matches(asked, names, n=3)
            if asked in names:
                hints.append(f"{asked} is there in other versions: leave the version out")
            elif near:
                hints.append(f"nearest names to {asked}: {', '.join(near)}")
        general = "look for the name in the release's packages, or add `components` or a repository"
        return "; ".join(hints) or general

    def assume_installed(self, packages: Sequence[LockedPackage]) -> None:
        """Add packages to the database, so that the next `solve` builds on them."""
        repository = [
            f"{p.name}:{p.architecture}={p.version}"
            if p.architecture != "all"
            else f"{p.name}={p.version}"
            for p in packages
            if p.url
        ]
        stanzas = ""
        if repository:
            stanzas = self._run(
                ["apt-cache", "show", *repository],
                SOLVE_TIMEOUT_S,
                "read package descriptions",
            )
        local = "".join(self._local_stanza(package) for package in packages if not package.url)
        with (self.directory / "status").open("a") as status:
            for stanza in filter(None, map(str.strip, (stanzas + local).split("\n\n"))):
                status.write(f"{stanza}\nStatus: install ok installed\n\n")

    def _local_stanza(self, package: LockedPackage) -> str:
        deb = self.directory.parent / "local" / f"{package.sha256}.deb"
        return self._run(["dpkg-deb", "-f", str(deb)], 30, f"read {package.name}") + "\n"

    def download(self, wanted: Sequence[LockedPackage], directory: Path) -> None:
        """Fetch packages as `SHA256.deb` into `directory`; apt verifies them.

        Raises `CommandFailed` with apt's words.
        """
        helper = process.require_program("apt-helper", "apt", ["/usr/lib/apt"])
        argv = [str(helper), "-qq", "download-file"]
        for package in wanted:
            argv += [
                package.url,
                str(directory / f"{package.sha256}.deb"),
                f"SHA256:{package.sha256}",
            ]
        self._run(argv, 3600, f"download {len(wanted)} packages")


def _parse_uris(printed: str) -> tuple[LockedPackage, ...]:
    found = []
    for line in printed.splitlines():
        if match := _URI.match(line):
            name, version, architecture = match["file"].removesuffix(".deb").rsplit("_", 2)
            found.append(
                LockedPackage(
                    name=name,
                    version=unquote(version),
                    architecture=architecture,
                    sha256=match["sha256"],
                    size=int(match["size"]),
                    url=match["url"],
                )
            )
    return tuple(sorted(found, key=lambda package: package.name))


def _host_settings() -> list[str]:
    """Return the host's settings of proxies and certificates, which downloads need here too."""
    program = process.require_program("apt-config", "apt")
    dump = process.run([program, "dump"], timeout_s=10, doing="read apt's settings")
    return [f"{line}\n" for line in dump.stdout.decode().splitlines() if _HOST_SETTINGS.match(line)]


def _field(release: Path, name: str) -> str:
    """Return a field of a Release file, or the empty text."""
    for line in release.read_text(errors="replace").splitlines():
        if line.startswith(f"{name}: "):
            return line.partition(": ")[2]
    return ""


def _unmet(stdout: bytes) -> str:
    """Return why packages don't go together, which apt says on standard output."""
    _, head, rest = stdout.decode(errors="replace").partition("unmet dependencies:")
    lines = [line for line in rest.splitlines() if line.startswith(" ")]
    return "".join(f"\n {line}" for line in lines[:20]) if head else ""


def _complaints(stderr: bytes) -> str:
    lines = [
        line for line in stderr.decode(errors="replace").splitlines() if line[:2] in ("E:", "W:")
    ]
    return "".join(
        f"\n  {line}" for line in (lines or stderr.decode(errors="replace").splitlines())[-20:]
    )
