"""Run a task of ours in a user namespace, where foreign code can touch nothing of the host.

A fresh interpreter (`microvm.host.inside`) unshares its namespaces, waits until its id maps are
written, bind-mounts what it was given while it still has the invoking user's file permissions,
and becomes uid 0 of a range that does not contain that user.
"""

import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from microvm import errors
from microvm.errors import DeadlineExceeded, HostError, MicroVMError
from microvm.host import files, process
from microvm.model.progress import Event, Progress, silent

COUNT = 65536
"""Ids of a guest: 0 to 65535, of which Debian uses all but the last."""

ROOT_FIRST = 0x78000000
"""Root's range where /etc/subuid has none: above systemd's container ranges (UIDS-GIDS.md)."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """A range of the host's user and group ids that a namespace maps from 0 on."""

    first_uid: int
    first_gid: int
    count: int = COUNT


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory of the host that the task gets to see."""

    source: Path
    read_only: bool = True


def id_range(store_dir: Path) -> IdRange:
    """Return the range that builds of this store use; root's is recorded in the store.

    Raises `HostError` when the invoking user has no subordinate ids.
    """
    record = store_dir / ".ids"
    if record.exists():
        return IdRange(**json.loads(record.read_text()))
    found = IdRange(_subordinate("/etc/subuid"), _subordinate("/etc/subgid"))
    files.write_atomic(record, json.dumps(asdict(found)) + "\n")
    return found


def _subordinate(table: str) -> int:
    """Return the first id of the user's first range of at least `COUNT` ids."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    taken: list[tuple[int, int]] = []
    path = Path(table)
    for line in path.read_text().splitlines() if path.exists() else ():
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if not (first.isdigit() and count.isdigit()):
            continue
        if owner in (user, str(uid)) and int(count) >= COUNT:
            return int(first)
        taken.append((int(first), int(count)))
    if uid != 0:
        option = "subuids" if table.endswith("subuid") else "subgids"
        raise HostError(
            f"{user} has no range of {COUNT} subordinate ids in {table}, which builds need",
            hint=f"sudo usermod --add-{option} 200000-265535 {user}",
        )
    return _free_range(taken, Path("/proc/self", table.rsplit("/", 1)[1][3:] + "_map").read_text())


def _free_range(taken: list[tuple[int, int]], id_map: str) -> int:
    """Return the highest free range not above `ROOT_FIRST` that this namespace maps."""
    inside, _, count = (int(number) for number in id_map.split()[-3:])
    first = min(ROOT_FIRST, inside + count - COUNT)
    while any(first < other + length and other < first + COUNT for other, length in taken):
        first -= COUNT
    if first < COUNT:
        raise HostError(
            f"no {COUNT} free user ids for builds in this container",
            hint="give the container more ids, or use it without a user namespace of its own",
        )
    return first


def run_inside(
    task: str,
    arguments: Mapping[str, Any],
    *,
    doing: str,
    binds: Mapping[str, Bind],
    ids: IdRange,
    network: bool = False,
    progress: Progress = silent,
    timeout_s: float,
) -> Any:
    """Call `module:function` as uid 0 of a fresh namespace and return its result (plain data).

    The function gets `(arguments, paths, report)`: `paths` has a directory for each of `binds`
    and `scratch`, a private tmpfs. All that it started ends with it, also when we are killed.
    `doing` says in a few words what for. Raises what the function raises of our own errors;
    `HostError` when the host allows no namespace; `DeadlineExceeded` after `timeout_s`.
    """
    request = {
        "task": task,
        "doing": doing,
        "arguments": arguments,
        "binds": {name: [str(bind.source), bind.read_only] for name, bind in binds.items()},
        "network": network,
    }
    report_read, report_write = os.pipe()
    go_read, go_write = os.pipe()
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
        "from microvm.host import inside; inside.main(int(sys.argv[2]), int(sys.argv[3]))"
    )
    argv = [sys.executable, "-I", "-c", code, json.dumps(sys.path)]
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [*argv, str(report_write), str(go_read)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(report_write, go_read),
            env=process.child_environment({"PYTHONDONTWRITEBYTECODE": "1"}),
            start_new_session=True,
        )
        os.close(report_write)
        os.close(go_read)
        conversation = _Conversation(worker, report_read, go_write, ids, progress)
        try:
            if worker.stdin:
                worker.stdin.write(json.dumps(request).encode())
                worker.stdin.close()
            return conversation.result(doing, process.Deadline(timeout_s), log)
        finally:
            os.close(report_read)
            os.close(go_write)
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            conversation.wait_for_end()


class _Conversation:
    """What the worker says, line by line, until its result."""

    def __init__(
        self,
        worker: "subprocess.Popen[bytes]",
        report: int,
        go: int,
        ids: IdRange,
        progress: Progress,
    ) -> None:
        self._worker = worker
        self._report = report
        self._go = go
        self._ids = ids
        self._progress = progress
        self._first: int | None = None
        """pidfd of the namespace's first process."""

    def wait_for_end(self) -> None:
        """Wait until nothing of the namespace runs: its first process ends after all others."""
        if self._first is not None:
            poller = select.poll()
            poller.register(self._first, select.POLLIN)
            poller.poll()
            os.close(self._first)

    def result(self, doing: str, deadline: process.Deadline, log: IO[bytes]) -> Any:
        buffer = b""
        poller = select.poll()
        poller.register(self._report, select.POLLIN)
        while True:
            if not poller.poll(int(deadline.left() * 1000)):
                raise DeadlineExceeded(f"could not {doing} in time; it was stopped")
            chunk = os.read(self._report, 65536)
            if not chunk:
                raise _lost(doing, log)
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "result" in message:
                    return message["result"]
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._progress(Event(**message["event"]))
        elif "unshared" in message:
            write_maps(self._worker.pid, self._ids)
            os.write(self._go, b"g")
        elif "first" in message:
            # Gone already when both were killed; then no result comes either.
            with suppress(ProcessLookupError):
                self._first = os.pidfd_open(message["first"])
                os.write(self._go, b"g")
        elif "error" in message:
            raise _revive(message["error"])
        else:
            raise RuntimeError(message["crash"])


def _lost(doing: str, log: IO[bytes]) -> MicroVMError:
    """Return what a worker's end without a word means."""
    log.seek(0)
    return HostError(
        f"could not {doing}: the process that did was killed{process.last_words(log.read())}",
        hint="the host may be short of memory (dmesg tells); then run the same command again",
    )


def write_maps(pid: int, ids: IdRange, *, with_own: bool = False) -> None:
    """Map the worker's ids: root writes them, others through the setuid helpers of uidmap.

    One's own id alone may be mapped by anybody who gives up setgroups(2) (user_namespaces(7)).
    `with_own` maps the invoking user too, behind the range.
    """
    if ids.count == 1 and _map_own_and_more(pid, ids):
        return
    if ids.count == 1:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    for kind, first, own in (
        ("uid", ids.first_uid, os.getuid()),
        ("gid", ids.first_gid, os.getgid()),
    ):
        rows = [(0, first, ids.count), *([(ids.count, own, 1)] if with_own else ())]
        if os.geteuid() == 0 or ids.count == 1:
            text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows)
            Path(f"/proc/{pid}/{kind}_map").write_text(text)
        else:
            program = process.require_program(f"new{kind}map", "uidmap")
            process.run(
                [program, str(pid), *(str(number) for row in rows for number in row)],
                timeout_s=10,
                doing="map subordinate ids into a user namespace",
            )


def _map_own_and_more(pid: int, ids: IdRange) -> bool:
    """Map one's own id as 0 and subordinate ids above it; return whether the user has some.

    setgroups(2) stays allowed, which the C virtiofsd insists on, and guests have other users.
    """
    if os.geteuid() == 0:
        return False
    try:
        rows = (
            ("newuidmap", ids.first_uid, _subordinate("/etc/subuid")),
            ("newgidmap", ids.first_gid, _subordinate("/etc/subgid")),
        )
    except HostError:
        return False
    for program, own, first in rows:
        path = process.require_program(program, "uidmap")
        numbers = ("0", str(own), "1", "1", str(first), str(COUNT - 1))
        process.run([path, str(pid), *numbers], timeout_s=10, doing="map ids into a namespace")
    return True


def _revive(error: dict[str, Any]) -> MicroVMError:
    """Return the exception that the worker caught, as the class it had."""
    cls = getattr(errors, error.pop("class"))
    message = error.pop("message")
    revived: MicroVMError = cls(message, **error)
    return revived


def remove_tree(path: Path, ids: Callable[[], IdRange]) -> None:
    """Delete a directory, also what in it belongs to the ids that `ids` returns.

    Raises `OSError`, `HostError`.
    """
    if os.geteuid() == 0:
        shutil.rmtree(path)
        return
    for entry in path.iterdir():
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink()
        elif entry.stat().st_uid == os.geteuid():
            remove_tree(entry, ids)
        else:
            run_inside(
                "microvm.host.inside:empty_directory",
                {},
                doing=f"empty {entry}",
                binds={"tree": Bind(entry, read_only=False)},
                ids=ids(),
                timeout_s=600,
            )
            entry.rmdir()  # empty, but closed to us
    path.rmdir()


def check_support() -> str | None:
    """Return why this host allows no user namespaces, with what to do, or None."""
    for path, bad, value in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
        ("/proc/sys/user/max_user_namespaces", "0", "10000"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        key = path.removeprefix("/proc/sys/").replace("/", ".")
        setting = Path(path)
        if os.geteuid() != 0 and setting.exists() and setting.read_text().strip() == bad:
            return f"{key} is {bad}: sudo sysctl {key}={value}"
    return None
