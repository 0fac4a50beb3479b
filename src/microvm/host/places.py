"""Where a user's own files lie, and programs that the store holds."""

import os
import pwd
from pathlib import Path

from microvm.errors import HostError


def user_directory(variable: str, below_home: str) -> Path:
    """Return what an XDG variable names, else its place below the home. Raises `HostError`."""
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():  # the XDG specification has others ignored
        return named
    home = os.environ.get("HOME") or _home_of_account()
    if not Path(home).is_absolute():
        said = f"HOME is {home!r}" if home else "HOME is not set, and /etc/passwd knows none"
        raise HostError(
            f"could not find the home directory of user {os.geteuid()}: {said}",
            hint=f"set HOME, or {variable}, to a directory that this user may write",
        )
    return Path(home) / below_home


def programs(store: Path, name: str) -> Path:
    """Return the directory where a store has that program, if it was installed there."""
    return store / ".programs" / name / "bin"


def installed(store: Path, name: str) -> tuple[str, ...]:
    """Return the directories to look for a program in after PATH, as a store has it installed.

    None where it is somebody else's, who could have put anything there: what root runs must not
    depend on what another user did in the directory that a runner was copied to.
    """
    directory = programs(store, name)
    try:
        owners = {path.lstat().st_uid for path in directory.parents[:2]}
        owners.add(directory.stat().st_uid)
    except OSError:
        return ()
    return (str(directory),) if owners <= {0, os.geteuid()} else ()


def _home_of_account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""
