"""Projects written in Python: `microvms.py` binds `microvms` to a dictionary of `MicroVM`s."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM


def read(path: Path) -> dict[str, Any]:
    """Run the file and return its declarations as plain tables, as TOML would give them.

    What it prints goes to standard error. Raises `SpecError` with file and line of what it raised.
    """
    try:
        # Objects of the file's own are asked for their words here, so that is its running too.
        with _importing(path.parent), redirect_stdout(sys.stderr):
            return _tables(path, _scope(path))
    except (SpecError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a user's program raises
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise  # the command line's own: it was told to end
        raise SpecError([_problem(path, error)]) from error


@contextmanager
def _importing(directory: Path) -> Iterator[None]:
    """Let the file import its neighbours, whatever it does to `sys.path` itself."""
    before, entries = sys.path, list(sys.path)
    sys.path = [str(directory), *entries]
    try:
        yield
    finally:
        sys.path = before
        sys.path[:] = entries


def _scope(path: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "microvms", "__file__": str(path)}
    try:
        source = path.read_bytes()
    except OSError as error:
        message = f"it can't be read: {error.strerror}"
        raise SpecError([Problem(file=str(path), message=message)]) from error
    code = compile(source, str(path), "exec")
    exec(code, scope)  # noqa: S102 - a Python project is a program; foreign ones need --trust
    return scope


def _tables(path: Path, scope: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    if "defaults" in scope:
        tables["defaults"] = _plain(path, "defaults", scope["defaults"])
    microvms = scope.get("microvms")
    if not isinstance(microvms, dict):
        message = "it does not bind `microvms` to a dictionary of MicroVM objects"
        raise SpecError([Problem(file=str(path), message=message)])
    if wrong := [type(name).__name__ for name in microvms if not isinstance(name, str)]:
        message = f"names of MicroVMs are texts, not {wrong[0]}"
        raise SpecError([Problem(file=str(path), where="microvms", message=message)])
    tables["microvms"] = {
        name: _plain(path, f"microvms.{name}", each) for name, each in microvms.items()
    }
    return tables


def _plain(path: Path, where: str, value: object) -> Any:
    if not isinstance(value, MicroVM):
        message = f"{type(value).__name__} is no MicroVM"
        raise SpecError([Problem(file=str(path), where=where, message=message)])
    return to_plain(value)


def _problem(path: Path, error: BaseException) -> Problem:
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    line = own[-1].lineno if own else None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, message = error.lineno, f"{error.msg}: {(error.text or '').strip()}"
    elif isinstance(error, SystemExit):
        message = "it ends the program (sys.exit) instead of declaring something"
    else:
        message = "".join(traceback.format_exception_only(error)).strip()
    return Problem(file=str(path), line=line, message=message)
