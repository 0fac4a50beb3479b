"""Run one runner in the foreground, as `microvm run` does, where only a launcher is installed.

`driver.py RUNNER STATE TIMEOUT [console | -- COMMAND...]`: with a command it is the guest's job,
with `console` a person has the console; else the guest is booted until it is up and shut down.
Its exit status is the run's.
"""

import sys
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.launch.foreground import Options, foreground


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    runner, state, timeout, *rest = sys.argv[1:]
    job = tuple(rest[1:]) if rest[:1] == ["--"] else None
    options = Options(
        job=job,
        until_up=not rest,
        up_timeout_s=float(timeout),
        timeout_s=2 * float(timeout),
        say=tell,
    )
    try:
        outcome = foreground(
            Path(runner), state_dir=Path(state), project_dir=Path(state), options=options
        )
    except MicroVMError as error:
        tell(f"driver: {error}\n{error.hint or ''}")
        return 125
    sys.stdout.flush()
    tell(f"driver: {outcome.reason}{outcome.console}")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
