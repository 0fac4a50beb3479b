"""The worker of `host.namespace`: what happens between a fresh interpreter and the task."""

import importlib
import json
import os
import resource
import select
import shutil
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from microvm.errors import CommandFailed, HostError, MicroVMError
from microvm.host import linux, namespace, network
from microvm.host.files import explain
from microvm.model.progress import Event, Progress

MOUNTS = Path("/mnt")
"""Where the task's directories appear; the host's own is covered in our mount namespace only."""

PROCESSES = 16384
"""Of each user of a guest under construction: a command that forks without end is stopped."""

_UNSHARE_HINT = (
    "user namespaces are not allowed here: in a container, give it more rights; in a chroot, none "
    "can be made at all"
)


class _Reporter:
    """Writes the worker's messages, one JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]

    def stop_if_alone(self) -> None:
        """End this process when nobody listens: the parent died before that could be noticed."""
        poller = select.poll()
        poller.register(self._descriptor, 0)
        if poller.poll(0):
            os._exit(1)

    def event(self, event: Event) -> None:
        self.send(event=asdict(event))

    def reported(self, work: Callable[[], None], doing: str) -> NoReturn:
        """Do the work, send what it raises, and end this process."""
        try:
            work()
        except MicroVMError as error:
            self.send(error=_plain(error))
        except OSError as error:
            self.send(error=_plain(explain(error, doing)))
        except Exception:  # the parent raises it again with this traceback
            self.send(crash=traceback.format_exc())
        os._exit(0)


def main(report: int, go: int) -> None:
    """Run one task: request on standard input, messages to `report`, start signal from `go`."""
    reporter = _Reporter(report)
    request = json.load(sys.stdin)
    reporter.reported(lambda: _work(request, reporter, go), request["doing"])


def _plain(error: MicroVMError) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
    }
    if isinstance(error, CommandFailed):
        plain |= {"argv": error.argv, "returncode": error.returncode}
    return plain


def _work(request: dict[str, Any], reporter: _Reporter, go: int) -> None:
    module, _, name = request["task"].partition(":")
    # Imported before the uid changes: the package may lie in a home that others can't enter.
    function = getattr(importlib.import_module(module), name)
    linux.die_with_parent()
    reporter.stop_if_alone()
    flags = (
        linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWPID
        | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
        | (0 if request["network"] else linux.CLONE_NEWNET)
    )  # fmt: skip
    try:
        linux.unshare(flags)
    except OSError as error:
        hint = namespace.check_support() or _UNSHARE_HINT
        raise HostError(f"could not make a user namespace: {error.strerror}", hint=hint) from error
    reporter.send(unshared=True)
    if not os.read(go, 1):
        os._exit(1)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    # Copied with the invoking user's permissions, and before anything is covered.
    trees = {
        name: (linux.clone_tree(Path(source)), read_only)
        for name, (source, read_only) in request["binds"].items()
    }
    child = os.fork()
    if child == 0:
        _become_root()
        reporter.stop_if_alone()
        if not os.read(go, 1):
            os._exit(1)
        paths = _attach(trees)
        if not request["network"]:
            network.bring_up("lo")
        task = partial(function, request["arguments"], paths, reporter.event)
        reporter.reported(lambda: reporter.send(result=task()), request["doing"])
    reporter.send(first=child)
    os.waitpid(child, 0)


def _attach(trees: dict[str, tuple[int, bool]]) -> dict[str, Path]:
    """Mount the copied trees under a private tmpfs; nothing else can be written any more.

    A link in a guest's tree that leads out of it leads to the host's files, as we see them.
    """
    linux.freeze("/")
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=1777")  # noqa: S108
    linux.mount("tmpfs", MOUNTS, "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=0755")
    paths = {name: MOUNTS / name for name in ("scratch", *trees)}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    # `store/NAME` lies in `store`, which the task finds its items by.
    paths |= {name.partition("/")[0]: MOUNTS / name.partition("/")[0] for name in trees}
    for name, (tree, read_only) in trees.items():
        linux.attach_tree(tree, paths[name], read_only=read_only)
    return paths


def _become_root() -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.die_with_parent()
    linux.set_dumpable()
    linux.leave_keyring()
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    os.umask(0o022)
    os.chdir("/")
    os.environ |= {"HOME": "/root", "USER": "root", "LOGNAME": "root", "TMPDIR": "/tmp"}  # noqa: S108


def empty_directory(arguments: Any, paths: dict[str, Path], report: Progress) -> None:
    """Task: delete all that is in `tree`."""
    for entry in paths["tree"].iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def whoami(arguments: Any, paths: dict[str, Path], report: Progress) -> Any:
    """Task: tell what the worker sees; used to try the host's namespaces out."""
    report(Event(step="look"))
    return {
        "uid": os.getuid(),
        "pid": os.getpid(),
        "paths": {name: str(path) for name, path in paths.items()},
        "interfaces": [name for _, name in socket.if_nameindex()],
        "arguments": arguments,
    }
