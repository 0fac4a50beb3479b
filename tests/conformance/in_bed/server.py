"""Inside the bed: carries out the commands that appear in a shared directory, some at a time.

`NAME.cmd` is a shell script. Its output becomes `NAME.out`, and last its status `NAME.status`.
The file `alive` is as old as the last look.
"""

import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    requests = Path(sys.argv[1])
    running: dict[Path, subprocess.Popen[bytes]] = {}
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    while True:
        (requests / "alive").touch()
        for request in sorted(requests.glob("*.cmd")):
            taken = request.rename(request.with_suffix(".taken"))
            with request.with_suffix(".out").open("wb") as out:
                running[request] = subprocess.Popen(
                    ["sh", taken], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    cwd=request.parent,
                )  # fmt: skip
        for request, process in list(running.items()):
            if process.poll() is not None:
                part = request.with_suffix(".part")
                part.write_text(str(process.returncode))
                part.rename(request.with_suffix(".status"))
                del running[request]
        time.sleep(0.5)


if __name__ == "__main__":
    main()
