"""Inside the bed: a person at a terminal. `typist.py SECONDS PROGRAM ARGUMENT...`

Each time that the guest says that it is up, types the next line; ends as the program does.
"""

import os
import pty
import select
import sys
import time

LINES = [b"reboot\r", b"poweroff\r"]


def main() -> int:
    seconds, *argv = sys.argv[1:]
    process, terminal = pty.fork()
    if process == 0:
        os.execvp(argv[0], argv)
    deadline = time.monotonic() + float(seconds)
    lines, seen = list(LINES), b""
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        seen += data
        if lines and b"automatic login)" in seen and seen.endswith(b"# "):
            os.write(terminal, lines.pop(0))
            seen = b""
    else:
        os.kill(process, 9)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
