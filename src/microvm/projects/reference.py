"""References: `PROJECT#NAME` names a MicroVM of a project on disk, in Git, or among the
examples.
"""

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from microvm.errors import Problem, SpecError
from microvm.host.files import obstacle

FILES = ("microvm.toml", "microvms.py")
EXAMPLES = "examples"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_GIT = re.compile(r"git\+(?P<url>(?:https?|ssh|file)://[^?#]+)(?:\?(?P<query>[^#]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where a project is, and which of its MicroVMs is meant."""

    text: str
    """As the user wrote it."""
    directory: Path | None
    """The project's directory; unset for a Git URL."""
    git_url: str | None = None
    git_ref: str | None = None
    name: str | None = None
    """Name of the MicroVM; unset: the project's only one."""


def parse(text: str) -> Reference:
    """Return what a reference means. Raises `SpecError` when it can't mean anything."""
    if "\0" in text:
        raise _wrong(text, "there is no NUL in a path or URL")
    place, mark, name = text.partition("#")
    if mark and name and not _NAME.fullmatch(name):
        raise _wrong(text, f"{name!r} is no name: lower-case letters, digits and inner hyphens")
    if match := _GIT.fullmatch(place):
        return _git(text, match["url"], match["query"] or "", name or None)
    if place.startswith("git+"):
        raise _wrong(text, "a Git reference is git+https://HOST/REPO?ref=REF#NAME (or ssh, file)")
    if not mark:
        # A bare word is a name in the current directory, anything with a slash is a project.
        if _NAME.fullmatch(place) and not _is_project(Path(place)):
            return Reference(text=text, directory=here(text), name=place)
        return Reference(text=text, directory=_directory(text, place))
    if place == EXAMPLES and not _is_project(Path(EXAMPLES)):
        return _example(text, name)
    return Reference(text=text, directory=_directory(text, place or "."), name=name or None)


def here(text: str) -> Path:
    """Return the current directory. Raises `SpecError` when it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise _wrong(text, "the current directory is not there any more") from error


def _is_project(directory: Path) -> bool:
    return any(obstacle(directory / file) is None for file in FILES)


def examples_directory() -> Path:
    """Return the directory of the examples that ship with this package."""
    packaged = Path(__file__).parent.parent / EXAMPLES
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[3] / EXAMPLES


def _example(text: str, name: str) -> Reference:
    """`examples#hello` is the project `hello` among the examples, or a MicroVM in one of them."""
    root = examples_directory()
    known = (
        sorted(entry.name for entry in root.iterdir() if _is_project(entry))
        if root.is_dir()
        else []
    )
    if name in known:
        return Reference(text=text, directory=root / name)
    for project in known:
        if name.startswith(f"{project}-"):
            return Reference(text=text, directory=root / project, name=name)
    raise _wrong(text, f"there is no example {name!r}: there are {', '.join(known)}")


def _git(text: str, url: str, query: str, name: str | None) -> Reference:
    ref = None
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key != "ref" or not value or value.startswith("-"):
            raise _wrong(text, f"{part!r} is not understood; ?ref=BRANCH, TAG or COMMIT is")
        ref = value
    return Reference(text=text, directory=None, git_url=url, git_ref=ref, name=name)


def _directory(text: str, place: str) -> Path:
    try:
        path = Path(place).expanduser()
    except (RuntimeError, ValueError) as error:
        raise _wrong(text, f"there is no home directory for {place.partition('/')[0]}") from error
    path = path if path.is_absolute() else here(text) / path
    if path.name in FILES and obstacle(path, stat.S_ISREG) is None:
        path = path.parent
    if why := obstacle(path, stat.S_ISDIR):
        raise _wrong(text, why)
    return path


def _wrong(text: str, message: str) -> SpecError:
    return SpecError([Problem(where=text, message=message)])
