"""Projects written in Python: `microvms.py` binds `microvms` to a dictionary of `MicroVM`s."""

import sys
import traceback
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM


def read(path: Path) -> dict[str, Any]:
    """Run the file and return its declarations as plain tables, as TOML would give them.

    Raises `SpecError` with file and line of what the file raised.
    """
    scope: dict[str, Any] = {"__name__": "microvms", "__file__": str(path)}
    sys.path.insert(0, str(path.parent))
    try:
        code = compile(path.read_bytes(), str(path), "exec")
        exec(code, scope)  # noqa: S102 - a Python project is a program; foreign ones need --trust
    except SyntaxError as error:
        message = f"{error.msg}: {(error.text or '').strip()}"
        raise SpecError([Problem(file=str(path), line=error.lineno, message=message)]) from error
    except Exception as error:  # whatever a user's program raises
        raise SpecError([_problem(path, error)]) from error
    finally:
        sys.path.remove(str(path.parent))
    tables: dict[str, Any] = {}
    if "defaults" in scope:
        tables["defaults"] = _plain(path, "defaults", scope["defaults"])
    microvms = scope.get("microvms")
    if not isinstance(microvms, dict):
        message = "it does not bind `microvms` to a dictionary of MicroVM objects"
        raise SpecError([Problem(file=str(path), message=message)])
    tables["microvms"] = {
        str(name): _plain(path, f"microvms.{name}", each) for name, each in microvms.items()
    }
    return tables


def _plain(path: Path, where: str, value: object) -> Any:
    if not isinstance(value, MicroVM):
        message = f"{type(value).__name__} is no MicroVM"
        raise SpecError([Problem(file=str(path), where=where, message=message)])
    return to_plain(value)


def _problem(path: Path, error: Exception) -> Problem:
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    text = f"{type(error).__name__}: {error}"
    return Problem(file=str(path), line=own[-1].lineno if own else None, message=text)
