"""Inside the bed: boot a guest to its greeting and shut it down: `repeat.py DRIVER...`.

Prints a line of JSON, and how often it noted a boot. The current directory is the machine's state directory;
its volume `data.img` is checked after the end.
"""

import json
import subprocess
import sys
import time

GREETING = b" is up: "


def once(driver: list[str]) -> dict[str, object]:
    start = time.monotonic()
    up_s, said = None, b""
    with subprocess.Popen(
        driver, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        while data := process.stdout.read1(4096):
            said += data
            if up_s is None and GREETING in said:
                up_s = time.monotonic() - start
    check = subprocess.run(["e2fsck", "-fn", "data.img"], capture_output=True, check=False)
    return {
        "status": process.returncode,
        "up_s": up_s,
        "end_s": time.monotonic() - start,
        "clean": check.returncode == 0,
        "said": said.decode(errors="replace")[-3000:],
    }


def main() -> None:
    sys.stdout.write(json.dumps(once(sys.argv[1:])) + "\n")
    command = ["debugfs", "-R", "cat boots", "data.img"]
    noted = subprocess.run(command, capture_output=True, check=False)
    sys.stdout.write(f"noted {noted.stdout.count(b'boot')}\n")


if __name__ == "__main__":
    main()
