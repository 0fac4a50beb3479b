"""Projects in Git: a checkout of one commit, kept in the cache by URL and ref."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from microvm.errors import CommandFailed, MicroVMError
from microvm.host import cache, files, process

TIMEOUT_S = 300
_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
}
_SAFE = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "core.symlinks=true",
    "-c",
    "http.lowSpeedLimit=1",
    "-c",
    "http.lowSpeedTime=30",
]


def fetch(url: str, ref: str | None) -> Path:
    """Return a checkout of the project at `ref` (the default branch if unset).

    Raises `MicroVMError` with git's words.
    """
    program = process.require_program("git", "git")
    key = hashlib.sha256(f"{url}\0{ref or ''}".encode()).hexdigest()[:32]
    directory = cache.directory() / "git" / key
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, f"keep a checkout of {url}") from error
    tree = directory / _name(url)
    with files.lock(directory / "lock"):
        git = [str(program), *_SAFE, "-C", str(tree)]
        known = (tree / ".git/FETCH_HEAD").is_file()
        if not known:
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            _run([*git, "init", "-q"], f"make a checkout of {url}")
        for stale in (tree / ".git").glob("*.lock"):
            stale.unlink()  # of a git that was killed: the lock around us is the real one
        source = url.removeprefix("file://") if url.startswith("file://") else url
        try:
            _run(
                [*git, "fetch", "-q", "--depth=1", "--no-tags", "--", source, ref or "HEAD"],
                f"fetch {url}{f' at {ref}' if ref else ''}",
            )
        except MicroVMError:
            if not known:
                shutil.rmtree(tree, ignore_errors=True)
            raise
        _run([*git, "checkout", "-q", "-f", "--detach", "FETCH_HEAD"], f"check {url} out")
        _run([*git, "clean", "-q", "-ffdx"], f"clean the checkout of {url}")
    return tree


def _name(url: str) -> str:
    """Return the name of a checkout: the last word of its URL, when that is fit for a directory."""
    last = re.sub(r"[^A-Za-z0-9._-]", "-", url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"))
    return last.lstrip(".-")[:64] or "project"


def _run(argv: list[str], doing: str) -> None:
    try:
        process.run(argv, timeout_s=TIMEOUT_S, env={**os.environ, **_QUIET}, doing=doing)
    except CommandFailed as error:
        hint = "check the URL, the ref, and that git can reach it without asking for a password"
        raise MicroVMError(error.message, hint=hint) from error
