"""Whether the same declaration, lock and tool versions give the same bytes anywhere."""

import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.bench import PROGRAM, RELEASE, Bench
from bench.measure import Bound, PeerError, Row, Series, absent

WHAT = "same declaration, lock and tool versions: files of layers, initrd and runner that differ"
DAYS = 400
_DECLARED = f"""[microvms.same]
mem = 512
[microvms.same.system]
release = "{RELEASE}"
packages = ["openssh-server"]
files."/etc/x".text = "a"
users.alice = {{ sudo = true }}
run = ["date >/dev/null; useradd --system made-here"]
"""


@dataclass(frozen=True)
class Elsewhere:
    """Another place to build at: a directory, a user, a clock."""

    name: str
    user: str | None
    env: Mapping[str, str]


def rows(bench: Bench) -> Iterator[Row]:
    """Build once here; then elsewhere with the same lock and the same packages; compare."""
    project = bench.project("same", _DECLARED)
    first = digests(bench.store, project.build(out_link=bench.directory / "same-result"))
    compared: dict[str, int] = {}
    missing: list[str] = []
    for place in _places():
        try:
            again = _build(bench, project.directory, place)
        except PeerError as error:
            missing.append(f"{place.name}: {error}")
            continue
        different = {name for name, _ in first.items() ^ again.items()}
        for name in sorted(different):
            print(f"differs in {place.name}: {name}", file=sys.stderr)
        compared[place.name] = len(different)
    if not compared:
        yield Row(what=WHAT, ours=absent("ours", "; ".join(missing)), bound=Bound(at_most=0))
        return
    yield Row(
        what=WHAT,
        ours=Series("ours", (float(max(compared.values())),)),
        unit="files",
        bound=Bound(at_most=0),
        how=f"{len(first)} files compared by SHA-256 with a build in {', one in '.join(compared)}; "
        "what runs inside the guest's root keeps the host's clock"
        + (f". Not measured: {'; '.join(missing)}" if missing else ""),
        why="the benchmark names the files that differ",
    )


def _places() -> Iterator[Elsewhere]:
    yield Elsewhere("another directory and store", None, {})
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    clock = {
        "LD_PRELOAD": str(library or ""),
        "FAKETIME": f"+{DAYS}d",
        "NO_FAKE_STAT": "1",
    }
    yield Elsewhere(
        f"another directory with the clock of our own programs {DAYS} days on", None, clock
    )
    yield Elsewhere("an ordinary user's home, without root", _ordinary_user() or "", {})


def _ordinary_user() -> str | None:
    """Return an account with sub-uids that root can become."""
    listed = Path("/etc/subuid")
    names = (
        {line.partition(":")[0] for line in listed.read_text().splitlines()}
        if listed.exists()
        else set()
    )
    for account in pwd.getpwall():
        if account.pw_name in names and account.pw_uid and Path(account.pw_dir).is_dir():
            return account.pw_name
    return None


def _build(bench: Bench, project: Path, place: Elsewhere) -> dict[str, str]:
    """Build a copy of the project in a store of its own. Raises `PeerError`."""
    if place.env.get("LD_PRELOAD") == "":
        raise PeerError("libfaketime is not installed (make bench-peers installs it)")
    if place.user == "" or (place.user and os.geteuid()):
        raise PeerError("needs root, and an account with sub-uids to become")
    home = Path(pwd.getpwnam(place.user).pw_dir) if place.user else bench.directory
    directory = home / f"elsewhere-{os.getpid()}-{len(place.env)}"
    shutil.copytree(project, directory)
    try:
        packages = directory / "store/.packages"
        shutil.copytree(bench.store / ".packages", packages)
        argv = [PROGRAM, "build", str(directory), "--store", str(directory / "store")]
        if place.user:
            subprocess.run(["chown", "-R", place.user, str(directory)], check=True)
            argv = ["runuser", "-u", place.user, "--", *argv]
        state = {"XDG_STATE_HOME": str(directory / "state"), "HOME": str(home)}
        env = {**os.environ, **state, **place.env}
        done = subprocess.run(argv, env=env, cwd=directory, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(" ".join(done.stderr.split())[-300:])
        return digests(directory / "store", Path(done.stdout.strip()))
    finally:
        # Its trees belong to sub-uids.
        subprocess.run(
            [PROGRAM, "store", "gc", "--store", str(directory / "store")], capture_output=True
        )
        shutil.rmtree(directory)


def digests(store: Path, runner: Path) -> dict[str, str]:
    """Return the SHA-256 of every image, kernel, initrd and runner file, by item and name."""
    system = json.loads((runner / "share/microvm/system/system.json").read_text())
    items = [runner.name, system["name"], system["kernel"]]
    items += [layer["image"] for layer in system["layers"]]
    return {
        f"{name}/{path.relative_to(store / name)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for name in items
        for path in sorted((store / name).rglob("*"))
        if path.is_file() and not path.is_symlink() and "tree" not in path.parts
    }
