"""Run virtiofsd in a user namespace with the store's id map, so that guests see their own owners.

Called as `main([program, argument...])` by `launch.starting`.
"""

import os
import sys
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.host import namespace


def main(argv: list[str]) -> None:
    """Become the program inside a mapped namespace; the store is found from the path it serves."""
    served = next(word for word in argv if "-shared-dir=" in word or "source=" in word)
    source = served.partition("-shared-dir=")[2] or served.partition("source=")[2].partition(",")[0]
    store = Path(source).parent.parent
    try:
        namespace.become_mapped(argv, namespace.id_range(store))
    except (MicroVMError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)
