"""Inside the bed: run a job and look at its VMM from outside: `watch.py STATE RUNNER SECONDS PORT MEMORY`.

When the job says `ready` on standard error, prints what is to be seen on the host, one finding a
line, connects to PORT, sets the guest's memory to MEMORY MiB (`none`: neither), and closes the
job's standard input. Who connects to port 8098 of the host meanwhile is greeted.
"""

import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

O_DIRECT = 0o40000
DISKS = {"data.img": "direct", "packed.qcow2": "packed-direct"}
"""Images whose descriptors are looked at, and what is told of them."""


def main() -> int:
    state, runner, seconds, port, memory = sys.argv[1:]
    here = Path(__file__).parent
    inside = "".join((here / name).read_text() for name in ("addresses.sh", "extras.sh"))
    command = [
        sys.executable, str(here / "driver.py"), runner, state, seconds, "--", "sh", "-c", inside
    ]  # fmt: skip
    threading.Thread(target=greet, daemon=True).start()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=state
    ) as process:
        for line in process.stderr:
            tell("said", line.decode(errors="replace").rstrip())
            if line.startswith(b"ready"):
                look(process.pid)
                look_at_sockets(Path(state))
                look_at_links()
                if port != "none":
                    tell("forwarded", forwarded(int(port)))
                if memory != "none":
                    balloon = ["microvm-launch", "balloon", runner, memory]
                    subprocess.run(balloon, cwd=state, check=True)
                process.stdin.close()
    return process.returncode


def greet() -> None:
    with socket.create_server(("127.0.0.1", 8098)) as server:
        while True:
            with server.accept()[0] as link:
                link.sendall(b"out there")


def look(launcher: int) -> None:
    """Tell of the processes of the VMM: what the launcher started, sandboxed or not."""
    for place in _below(launcher):
        try:
            tell("process", (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:60])
            tell("uid", place.stat().st_uid)
            for task in (place / "task").iterdir():
                filtered = re.search(r"^Seccomp:\s*(\d)", (task / "status").read_text(), re.M)[1]
                tell("thread", f"{(task / 'comm').read_text().strip()} {filtered}")
            for descriptor in (place / "fd").iterdir():
                name = descriptor.readlink().name
                if "io_uring" in name:
                    tell("ring", descriptor.name)
                if name in DISKS:
                    info = (place / "fdinfo" / descriptor.name).read_text()
                    flags = int(re.search(r"flags:\s*(\d+)", info)[1], 8)
                    tell(DISKS[name], int(bool(flags & O_DIRECT)))
        except OSError:
            continue  # it has ended
    tell("huge", _huge_kib())


def look_at_sockets(state: Path) -> None:
    """Tell of sockets in subdirectories of the state directory."""
    for path in state.rglob("*/*"):
        if path.is_socket():
            tell("socket", path.relative_to(state))


def look_at_links() -> None:
    """Tell of the host's macvtaps: name, mode, MAC address."""
    said = subprocess.run(["ip", "-d", "-j", "link"], capture_output=True, check=True).stdout
    for link in json.loads(said):
        found = link.get("linkinfo", {})
        if found.get("info_kind") == "macvtap":
            tell("macvtap", f"{link['ifname']} {found['info_data']['mode']} {link['address']}")


def _below(ancestor: int) -> list[Path]:
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int(
                (place / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue  # it has ended
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return [Path("/proc", str(pid)) for pid in sorted(found - {ancestor})]


def _huge_kib() -> int:
    """Memory in huge pages: those that were set aside, and transparent ones of shared memory."""
    info = dict(re.findall(r"(\w+):\s+(\d+)", Path("/proc/meminfo").read_text()))
    aside = int(info["HugePages_Total"]) - int(info["HugePages_Free"])
    return aside * int(info["Hugepagesize"]) + int(info["ShmemHugePages"])


def forwarded(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            return link.recv(100).decode()
    except OSError as error:
        return str(error)


def tell(word: str, what: object) -> None:
    sys.stdout.write(f"{word} {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
