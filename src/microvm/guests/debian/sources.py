"""Where packages come from: the declared words as apt sources."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from microvm.errors import HostError, MicroVMError, Problem, SpecError
from microvm.host import process
from microvm.model.system import DebianSystem

KEYRINGS = Path("/usr/share/keyrings")
DEBIAN = {"bookworm": "12", "trixie": "13", "forky": "14", "sid": "unstable"}
UBUNTU = {
    "jammy": "22.04",
    "noble": "24.04",
    "plucky": "25.04",
    "questing": "25.10",
    "resolute": "26.04",
}

_PRINT_SOURCES = 'cat "$1/etc/apt/sources.list"; exit 1'


@dataclass(frozen=True, slots=True)
class Source:
    """One paragraph of an apt sources file (sources.list(5), deb822 style)."""

    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: str | None
    """File with the key that signs it; `None` means trusted without a signature."""

    def paragraph(self) -> str:
        """Return it as text."""
        components = f"Components: {' '.join(self.components)}\n" if self.components else ""
        trust = f"Signed-By: {self.keyring}\n" if self.keyring else "Trusted: yes\n"
        return f"Types: deb\nURIs: {self.url}\nSuites: {' '.join(self.suites)}\n{components}{trust}"


def distribution(release: str) -> str:
    """Return `debian` or `ubuntu`: whose release this is. Raises `SpecError` for an unknown one."""
    if release in UBUNTU:
        return "ubuntu"
    if release in DEBIAN:
        return "debian"
    raise SpecError([unknown_release(release)])


def unknown_release(release: str) -> Problem:
    """Return the problem of a release that no table here has, with the nearest name."""
    known = (*DEBIAN, *UBUNTU)
    near = difflib.get_close_matches(release, known, n=1)
    return Problem(
        where="system.release",
        message=f"{release!r} is no known release",
        hint=(f"did you mean {near[0]}? " if near else "") + f"known are {', '.join(known)}",
    )


def describe(release: str) -> str:
    """Return the release for people: `Debian 13 (trixie)`."""
    if distribution(release) == "ubuntu":
        return f"Ubuntu {UBUNTU[release]} ({release})"
    return f"Debian {DEBIAN[release]} ({release})"


def keyring(release: str) -> Path:
    """Return the file with the archive's keys. Raises `HostError` where it is not installed."""
    name = distribution(release)
    path = KEYRINGS / f"{name}-archive-keyring.gpg"
    if not path.exists():
        package = f"{name}-archive-keyring" if name == "debian" else "ubuntu-keyring"
        raise HostError(
            f"the keys that sign {describe(release)} are missing: {path}",
            hint=f"install them: apt install {package}",
        )
    return path


def sources(system: DebianSystem, project_dir: Path) -> tuple[Source, ...]:
    """Return the sources of a system, the mirror's first. Raises `SpecError`, `HostError`."""
    signed_by = str(keyring(system.release))
    found = _mirror_sources(system, signed_by)
    for repository in system.repositories:
        suite = repository.suite or system.release
        key = None if repository.trusted else repository.key
        found.append(
            Source(
                url=repository.url,
                suites=(suite,),
                components=() if suite.endswith("/") else repository.components,
                keyring=str(project_dir / key)
                if key
                else (None if repository.trusted else signed_by),
            )
        )
    return tuple(found)


def _mirror_sources(system: DebianSystem, signed_by: str) -> list[Source]:
    if system.mirror is None:
        return _default_sources(system, signed_by)
    release, mirror = system.release, system.mirror.rstrip("/")
    if not system.updates or release == "sid":
        return [Source(mirror, (release,), system.components, signed_by)]
    if distribution(release) == "ubuntu" and system.security_mirror is None:
        suites = (release, f"{release}-updates", f"{release}-security")
        return [Source(mirror, suites, system.components, signed_by)]
    security = system.security_mirror or f"{mirror}-security"
    return [
        Source(mirror, (release, f"{release}-updates"), system.components, signed_by),
        Source(security, (f"{release}-security",), system.components, signed_by),
    ]


def _default_sources(system: DebianSystem, signed_by: str) -> list[Source]:
    """Ask mmdebstrap what it would use: its own list, written out by a hook that then stops it."""
    process.require_program("apt-get", "apt")  # which mmdebstrap would miss in its own words
    program = process.require_program("mmdebstrap", "mmdebstrap")
    argv = [
        str(program),
        # Nothing is installed. chrootless asks for no rights; mmdebstrap 1.5 refuses it to root.
        "--mode=root" if os.geteuid() == 0 else "--mode=chrootless",
        "--variant=custom",
        "--format=null",
        f"--components={','.join(system.components)}",
        f"--setup-hook={_PRINT_SOURCES}",
        system.release,
        "/dev/null",
    ]
    answer = process.run(argv, timeout_s=60, check=False, doing="ask mmdebstrap for its mirror")
    found = [
        Source(_of_suite(system, suite) or url, (suite,), tuple(components), signed_by)
        for word, url, suite, *components in (
            line.split()
            # The hook's output joins mmdebstrap's own messages.
            for line in (answer.stdout + answer.stderr).decode(errors="replace").splitlines()
            if line.startswith("deb ")
        )
        if system.updates or suite == system.release
    ]
    if not found:
        raise MicroVMError(
            f"mmdebstrap knows no mirror for {system.release}{process.last_words(answer.stderr)}",
            hint="say `mirror` in the system",
        )
    return found


def _of_suite(system: DebianSystem, suite: str) -> str | None:
    """Return the declared mirror of a suite where mmdebstrap chooses the others."""
    return system.security_mirror if suite == f"{system.release}-security" else None
