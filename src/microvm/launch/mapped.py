"""Run a program that serves a guest's trees where their owners are the guest's own.

Each function is called in a fresh interpreter, whose command `command` returns.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from microvm.errors import MicroVMError
from microvm.host import mapped, namespace


def command(function: str, *words: str) -> tuple[str, ...]:
    """Return the argv that calls a function of this module with the words."""
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); "
        f"from microvm.launch.mapped import {function}; {function}(sys.argv[1:])"
    )
    return (sys.executable, "-I", "-c", code, json.dumps(sys.path), *words)


def virtiofsd(argv: list[str]) -> NoReturn:
    """Become virtiofsd as root of a namespace; `argv` is ids, read-only directory, its command."""
    ids, read_only, *words = argv
    try:
        mapped.become_mapped(words, _range(ids, read_only), read_only=read_only or None)
    except (MicroVMError, OSError) as error:
        _fail(error)


def vmm(argv: list[str]) -> NoReturn:
    """Become a VMM that serves trees itself; `argv` is those as JSON, argv[0], its command."""
    trees, name, *words = argv
    try:
        serve(words, json.loads(trees), name=name or None)
    except (MicroVMError, OSError) as error:
        _fail(error)


def serve(
    words: Sequence[str],
    trees: Sequence[str],
    *,
    name: str | None,
    env: Mapping[str, str] | None = None,
) -> NoReturn:
    """Replace this process by a VMM that serves trees of one store. Raises `OSError`, `HostError`.

    It stays the invoking user, to whom sockets, volumes and /dev/kvm belong.
    """
    ids = namespace.id_range(_store(trees[0]))
    mapped.become_reader(words, ids, [Path(tree) for tree in trees], env=env, name=name)


def _fail(error: Exception) -> NoReturn:
    sys.stderr.write(f"{error}\n")
    os._exit(1)


def _range(ids: str, tree: str) -> namespace.IdRange | None:
    """Return the map that `Helper.ids` names; a guest's tree is the read-only directory."""
    if ids == "host":
        return None
    if ids == "own":
        return namespace.IdRange(os.geteuid(), os.getegid(), 1)
    return namespace.id_range(_store(tree))


def _store(tree: str) -> Path:
    """Return the store of STORE/ITEM/tree."""
    return Path(tree).parent.parent
