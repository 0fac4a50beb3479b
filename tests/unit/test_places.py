"""Where a user's files lie, whatever the environment says or does not say."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import os, sys
from microvm.errors import HostError
from microvm.host.places import user_directory
if sys.argv[1:]:
    os.setresuid(*[int(sys.argv[1])] * 3)
try:
    print(user_directory("XDG_DATA_HOME", ".local/share"))
except HostError as error:
    print(error.message, error.hint, sep="\\n")
"""
NOBODYS = "64242"
"""A user id without an account, as containers are often started with."""


def ask(*arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_DATA_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], env={**kept, **environment}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_variable_counts_then_the_home():
    assert ask(HOME="/h", XDG_DATA_HOME="/d") == ["/d"]
    assert ask(HOME="/h") == ["/h/.local/share"]
    assert ask(HOME="/h", XDG_DATA_HOME="") == ["/h/.local/share"]
    assert ask(HOME="/h", XDG_DATA_HOME="not/absolute") == ["/h/.local/share"]


def test_without_home_the_account_tells_it():
    expected = Path(f"~{user()}/.local/share").expanduser()
    assert ask() == [str(expected)]
    assert ask(HOME="") == [str(expected)]


def user():
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        pytest.skip("this user has no account")


def test_a_home_that_is_no_place_is_told_with_what_to_set():
    message, hint = ask(HOME="relative")
    assert "HOME is 'relative'" in message
    assert "XDG_DATA_HOME" in hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user without an account")
def test_a_user_without_an_account_is_told_what_to_set():
    message, hint = ask(NOBODYS)
    assert message.startswith(f"could not find the home directory of user {NOBODYS}: HOME is not")
    assert "HOME" in hint
    assert ask(NOBODYS, HOME="/h") == ["/h/.local/share"]
