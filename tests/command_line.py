"""The command line as its users have it: a process, of this user or of another one."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path


class CommandLine:
    """Runs `microvm` as a user does: as a process of its own."""

    def __init__(self, store: Path, home: Path) -> None:
        self.store = store
        self.program = Path(sys.executable).with_name("microvm")
        self.env: Mapping[str, str] = {
            **os.environ,
            "MICROVM_STORE": str(store),
            "XDG_STATE_HOME": str(home / "state"),
            "TMPDIR": str(home),
            "TERM": "dumb",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), *arguments]

    def __call__(
        self,
        *arguments: str,
        timeout: float = 300,
        cwd: Path | None = None,
        input: bytes = b"",
        extra: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            self.command(*arguments),
            env={**self.env, **(extra or {})},
            cwd=cwd,
            input=input,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            **{"stderr": subprocess.STDOUT, **options},
        )
        self._started.append(process)
        return process

    def end_all(self) -> None:
        """End what a failed test left running, so that it disturbs no other."""
        while self._started:
            process = self._started.pop()
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


class UserCommandLine(CommandLine):
    """Runs a copy of `microvm` as an ordinary user, with a home and a store of its own."""

    def __init__(self, name: str, home: Path) -> None:
        super().__init__(home / "store", home)
        self.home = home
        self.python = ("runuser", "-u", name, "--", "/usr/bin/python3")
        kept = {key: value for key, value in self.env.items() if not key.startswith("XDG_")}
        # runuser sets HOME to the user's own.
        places = {
            f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("STATE", "CACHE", "DATA")
        }
        self.env = {**kept, **places, "PYTHONPATH": str(home / "lib")}

    def command(self, *arguments: str) -> list[str]:
        return [*self.python, "-m", "microvm.cli", *arguments]

    def __call__(self, *arguments: str, **options) -> "subprocess.CompletedProcess[str]":
        return super().__call__(*arguments, **{"cwd": self.home, **options})

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        return super().start(*arguments, **{"cwd": self.home, **options})

    def may_write(self, path: str) -> bool:
        argv = [*self.python[:-1], "test", "-w", path]
        return subprocess.run(argv, cwd="/", check=False).returncode == 0

    def own(self, *paths: Path) -> None:
        """Give files that root made to the user."""
        for path in paths:
            subprocess.run(["chown", "-R", self.python[2], path], check=True)


def copy_program(target: Path) -> None:
    """Copy the package and what it imports: the checkout may lie where a user can't enter."""
    checkout = Path(__file__).parents[1]
    shutil.copytree(checkout / "src/microvm", target / "microvm")
    shutil.copytree(checkout / "examples", target / "microvm/examples", dirs_exist_ok=True)
    queue, seen = ["microvm-py"], set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed by other versions of Python only
        wanted = [line for line in distribution.requires or () if "extra ==" not in line]
        queue += [re.match(r"[\w.-]+", line)[0] for line in wanted]
        for file in distribution.files or () if name != "microvm-py" else ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target / file)
