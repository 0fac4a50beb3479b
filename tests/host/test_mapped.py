"""What an ordinary user's helper is in its namespace: root of itself, with other ids to give."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

CODE = """
import os, sys
from microvm.host.mapped import become_mapped
from microvm.host.namespace import IdRange
inside = "import os; os.setgroups([]); open('root', 'w'); os.setuid(33); open('other', 'w')"
inside = f"import os; os.chdir({os.getcwd()!r}); {inside}"
ids = IdRange(os.geteuid(), os.getegid(), 1)
become_mapped(["/usr/bin/python3", "-c", inside], ids, read_only=None)
"""


def test_root_in_it_is_the_user_and_others_are_the_users_subordinate_ids():
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    name = os.environ.get("MICROVM_TEST_USER", "")
    table = Path("/etc/subuid").read_text() if Path("/etc/subuid").exists() else ""
    lines = [line.split(":") for line in table.splitlines() if line.startswith(f"{name}:")]
    if not name or not lines:
        pytest.skip("MICROVM_TEST_USER names no user with sub-uids")
    user = pwd.getpwnam(name)
    place = Path(user.pw_dir) / f"microvm-test-{os.getpid()}"
    source = place / "src"
    shutil.copytree(Path(__file__).parents[2] / "src", source)
    try:
        place.chmod(0o777)
        (place / "code.py").write_text(CODE)
        subprocess.run(
            ["runuser", "-u", name, "--", "/usr/bin/python3", "code.py"],
            cwd=place, env={**os.environ, "PYTHONPATH": str(source), "HOME": user.pw_dir},
            check=True, capture_output=True,
        )  # fmt: skip
        assert (place / "root").stat().st_uid == user.pw_uid
        assert (place / "other").stat().st_uid == int(lines[0][1]) + 33 - 1
    finally:
        shutil.rmtree(place)


FAILING = """
import sys
from microvm.errors import MicroVMError
from microvm.host.mapped import become_mapped
from microvm.host.namespace import IdRange
try:
    become_mapped(["/bin/echo", "became"], IdRange(0xFFFFFFFF, 0xFFFFFFFF, 2), read_only=None)
except MicroVMError as error:
    print(f"{error} ({error.hint})")
finally:
    print("left")
"""


def test_maps_that_can_not_be_written_are_told_by_one_process():
    done = subprocess.run(
        [sys.executable, "-c", FAILING], capture_output=True, check=False, text=True, timeout=50
    )
    assert "could not map the ids of a user namespace: " in done.stdout
    assert "microvm doctor" in done.stdout
    assert done.stdout.count("left") == 1, "the child that writes maps went on as its parent"
