"""What the host is and has: programs with their versions, its identity, its huge pages."""

import os
import re
from pathlib import Path

from microvm.errors import HostError, MicroVMError
from microvm.host import cache, files, process
from microvm.model.facts import Program

_PACKAGES = {
    "virtiofsd": "virtiofsd",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}
_UNPACKAGED = {
    "cloud-hypervisor": "microvm hypervisors install cloud-hypervisor",
    "firecracker": "microvm hypervisors install firecracker",
    "crosvm": "Debian has no package of it (microvm hypervisors install crosvm tells more)",
    "lkvm": "Debian has no package of it (microvm hypervisors install kvmtool tells more)",
}


def package(name: str) -> str:
    """Return the Debian package that holds a program."""
    return _PACKAGES.get(name, name)


def program(
    name: str, declared: str | None = None, extra_dirs: tuple[str, ...] = (), *, dry: bool = False
) -> Program:
    """Return a program with its version, asked once and then known by path, size and mtime.

    `extra_dirs`: where to look after PATH. `dry`: remember nothing. Raises `HostError` that
    names the package when it is not there.
    """
    path = process.find_program(declared or name, extra_dirs)
    if path is None and declared:
        raise _no_program(name, declared)
    if path is None:
        hint = f"install it: apt install {package(name)}"
        if name in _UNPACKAGED:
            hint = f"{_UNPACKAGED[name]}; or put it on PATH, or say where it is (`program`)"
        raise HostError(f"the program {name} is missing", hint=hint)
    info = path.stat()
    key = f"{name}:{path}:{info.st_size}:{info.st_mtime_ns}"
    record = cache.directory() / "programs.json"
    known = cache.read(record)
    match known.get(key):
        case [[*version], str(flavour)] if version:
            return Program(path=str(path), version=tuple(version), flavour=flavour)
    found = _ask(name, path)
    if found.version and not dry:
        others = {k: v for k, v in known.items() if not k.startswith(f"{name}:{path}:")}
        cache.remember(record, {**others, key: [found.version, found.flavour]})
    return found


_ANOTHER = "mend or reinstall it, or name another (`program`)"


def _no_program(name: str, declared: str) -> HostError:
    """Say why a declared program can't be it."""
    path = Path(declared)
    why = "is not on PATH"
    if path.is_dir():
        why = "is a directory"
    elif path.exists():
        why = "is not executable"
    elif "/" in declared:
        why = "is not there"
    message = f"the declared program for {name}, {declared}, {why}"
    return HostError(message, hint=f"correct `program`, or leave it out: {name} is looked for then")


def _ask(name: str, path: Path) -> Program:
    if name == "crosvm":
        return Program(path=str(path), version=())  # its numbers are a log's time, never a version
    doing = f"ask {path.name} for its version"
    try:
        done = process.run([path, "--version"], timeout_s=10, check=False, doing=doing)
    except MicroVMError as error:
        raise HostError(error.message, hint=error.hint or f"is it {name}? {_ANOTHER}") from error
    text = (done.stdout + done.stderr).decode(errors="replace")
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    version = tuple(int(part) for part in match.groups() if part) if match else ()
    flavour = ""
    if name == "virtiofsd":
        # The C one drops groups before it looks at its options, which only root may.
        flavour = "c" if re.search("FUSE|fuse|setgroups", text) else "rust"
    elif not version and done.returncode != 0:  # one that can't say that can't run guests either
        raise HostError(
            f"could not {doing}: it {process.ended(done.returncode)}"
            f"{process.last_words(text.encode(), 3)}",
            hint=f"is {path} a working {name}? {_ANOTHER}",
        )
    return Program(path=str(path), version=version, flavour=flavour)


def host_id(state_dir: Path, *, dry: bool = False) -> str:
    """Return the host's machine-id, or a random one that is kept beside the state.

    `dry`: make none; zeros stand for it until a run does.
    """
    try:
        found = Path("/etc/machine-id").read_text().strip()
    except OSError:
        found = ""
    if re.fullmatch(r"[0-9a-f]{32}", found):
        return found
    record = state_dir / "host-id"
    if not record.exists():
        if dry:
            return "0" * 32
        files.write_atomic(record, os.urandom(16).hex() + "\n")
    return record.read_text().strip()


def hugepage_kib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the size of the host's huge pages, or 0."""
    found = re.search(r"^Hugepagesize:\s*(\d+) kB$", meminfo.read_text(), re.M)
    return int(found[1]) if found else 0


def hugepages_free(
    meminfo: Path = Path("/proc/meminfo"),
    overcommit: Path = Path("/proc/sys/vm/nr_overcommit_hugepages"),
) -> int:
    """Return how many huge pages of the usual size a program can still get."""
    said = dict(re.findall(r"^HugePages_(\w+):\s*(\d+)$", meminfo.read_text(), re.M))
    have = {name: int(number) for name, number in said.items()}
    free = have.get("Free", 0) - have.get("Rsvd", 0)
    more = int(overcommit.read_text()) if overcommit.exists() else 0
    return free + max(more - have.get("Surp", 0), 0)


def hugetlbfs(mounts: Path = Path("/proc/mounts")) -> str | None:
    """Return where a hugetlbfs is mounted that we may write to, and its pages are no giants."""
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split(" ")
        path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), place)  # proc_mounts
        if kind == "hugetlbfs" and "pagesize=1024M" not in options and os.access(path, os.W_OK):
            return path
    return None


def shmem_thp(place: Path = Path("/sys/kernel/mm/transparent_hugepage")) -> str:
    """Return when shared memory gets transparent huge pages: `advise`, `never` and so on."""
    try:
        text = (place / "shmem_enabled").read_text()
    except OSError:
        return "never"  # a kernel without them
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else "never"
