"""The three standard descriptors of a process, which who started it may have closed."""

import os
import sys


def complete() -> None:
    """Have all three: the null device is put where one is closed.

    Else the next file that is opened, a volume perhaps, would be the standard output of us and
    of all that we start.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
