"""Become a program in a user namespace of its own, where guests' trees have the guests' owners."""

import os
import select
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from microvm.errors import HostError, MicroVMError
from microvm.host import linux, process
from microvm.host.namespace import IdRange, write_maps

_GO = b"g"


def become_mapped(argv: list[str], ids: IdRange | None, *, read_only: str | None) -> NoReturn:
    """Replace this process by a program in mount and user namespaces of its own.

    It is uid 0 there with the map `ids`; without one only its mounts are its own. It can't change
    what is below `read_only`. Its sockets outside /run are seen by all. Raises `OSError`,
    `HostError`.
    """
    frozen = Path(read_only) if read_only else None
    if ids is None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        if frozen:
            linux.attach_tree(linux.clone_tree(frozen), frozen, read_only=True)
        process.become(argv)
    _unshare_mapped(ids)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    # Copied with the invoking user's permissions: a directory above may be closed to the map's ids.
    tree = linux.clone_tree(frozen) if frozen else None
    if ids.count > 1:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.die_with_parent()
    # The C virtiofsd insists on a directory below /run, where only the host's root may write.
    linux.mount("tmpfs", "/run", "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=0755")
    Path("/run/virtiofsd").mkdir()
    if tree is not None:
        served = Path("/run/served")
        served.mkdir()
        linux.attach_tree(tree, served, read_only=True)
        argv = [word.replace(str(frozen), str(served)) for word in argv]
    os.chdir("/")
    process.become(argv)


def become_reader(
    argv: Sequence[str],
    ids: IdRange,
    trees: Sequence[Path],
    *,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
) -> NoReturn:
    """Replace this process by a program that sees the owners of `trees` as the map `ids` has them.

    It stays the invoking user, with that user's files, devices and groups, and may read what
    belongs to the map's ids; it can't change the trees. Raises `OSError`, `HostError`.
    """
    _unshare_mapped(ids, with_own=True)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    for tree in trees:
        linux.attach_tree(linux.clone_tree(tree), tree, read_only=True)
    linux.keep_capability(linux.CAP_DAC_READ_SEARCH)
    process.become(argv, env=env, name=name)


def _unshare_mapped(ids: IdRange, *, with_own: bool = False) -> None:
    """Enter new namespaces; a child that stays outside writes their maps.

    Raises `OSError`, and `HostError` with the child's words.
    """
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    parent = os.getpid()
    writer = os.fork()
    if writer == 0:
        os.close(ready_write)  # so that it ends with a parent that doesn't get that far
        _write_and_end(parent, ids, ready_read, done_write, with_own=with_own)
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    os.write(ready_write, _GO)
    os.close(done_write)
    said = os.read(done_read, select.PIPE_BUF)
    os.waitpid(writer, 0)
    if said != _GO:
        why = said.decode(errors="replace") or "who does was killed"
        raise HostError(
            f"could not map the ids of a user namespace: {why}",
            hint="microvm doctor tells what this host lacks",
        )


def _write_and_end(parent: int, ids: IdRange, ready: int, done: int, *, with_own: bool) -> NoReturn:
    """Write the maps once the parent has its namespaces, and tell it; nothing else may follow."""
    said = b""
    try:
        if os.read(ready, 1):
            write_maps(parent, ids, with_own=with_own)
            said = _GO
    except (MicroVMError, OSError) as error:
        said = str(error).encode()[: select.PIPE_BUF]
    finally:
        os.write(done, said)
        os._exit(0)
