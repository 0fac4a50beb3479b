"""Run virtiofsd as root of a user namespace, so that guests see their own owners.

Called as `main([ids, read-only directory, program, argument...])` by `launch.starting`.
"""

import os
import sys
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.host import namespace


def main(argv: list[str]) -> None:
    """Become the program inside the namespace; the store is found from the path it serves."""
    ids, read_only, *command = argv
    try:
        namespace.become_mapped(command, _range(ids, command), read_only=read_only or None)
    except (MicroVMError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)


def _range(ids: str, command: list[str]) -> namespace.IdRange | None:
    if ids == "host":
        return None
    if ids == "own":
        return namespace.IdRange(os.geteuid(), os.getegid(), 1)
    served = next(word for word in command if "--shared-dir=" in word or "source=" in word)
    path = served.partition("-dir=")[2] or served.partition("source=")[2].partition(",")[0]
    return namespace.id_range(Path(path).parent.parent)
