"""Credentials on a disk, as VMMs without fw_cfg get them, taken by a real guest's systemd."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from microvm.host import credentials
from microvm.model.plan import CredentialDisk

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600), pytest.mark.usefixtures("leftovers")]
DRIVER = Path(__file__).parents[1] / "conformance/in_bed/driver.py"
SECRET = b"line one\nbytes \xff\x00 and more\n"
LOOK = """
stat -c '%a %u' /run/credentials/@system /run/credentials/@system/plain
systemd-creds --system cat plain | sha256sum
ls /run/credentials/@system
systemctl start look
cat /run/seen
"""
UNIT = """
[Service]
Type=oneshot
LoadCredential=plain
ExecStart=sh -c "sha256sum <$CREDENTIALS_DIRECTORY/plain >/run/seen"
"""


@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_a_guest_finds_its_credentials_on_a_disk(release, microvm_cli, tmp_path):
    identity = "0123456789abcdef0123456789abcdef"
    for name, data in (("plain", SECRET), ("z.other_1@x-y", b"")):
        (tmp_path / name).write_bytes(data)
    names = {name: str(tmp_path / name) for name in ("plain", "z.other_1@x-y")}
    disks = [
        CredentialDisk(image="foreign.img", machine_id="f" * 32, files={"plain": "/etc/hostname"}),
        CredentialDisk(image="ours.img", machine_id=identity, files=names),
    ]
    extra = []
    for disk in disks:
        credentials.write(disk, tmp_path)
        assert (tmp_path / disk.image).stat().st_mode & 0o777 == 0o600
        drive = f"if=none,id={disk.image},format=raw,read-only=on,file={tmp_path / disk.image}"
        extra += ["-drive", drive, "-device", f"virtio-blk-pci,drive={disk.image}"]
    (tmp_path / "microvm.toml").write_text(
        f'[microvms.box]\nsystem.release = "{release}"\nqemu.machine = "q35"\nqemu.extra_args = {extra}\n'
        f'[microvms.box.system.units."look.service"]\ntext = """{UNIT}"""\n'
    )
    built = microvm_cli("build", str(tmp_path), timeout=500)
    assert built.returncode == 0, built.stderr
    # qemu needs no such disk, so no declaration can ask for one: the runner is told.
    runner = Path(shutil.copytree(built.stdout.strip(), microvm_cli.store / f"told-{release}"))
    try:
        told = runner / "share/microvm/runner.json"
        plain = json.loads(told.read_text())
        plain["microvm"]["kernel_params"] = [f"microvm.credentials={identity}"]
        told.write_text(json.dumps(plain))
        argv = [sys.executable, DRIVER, runner, tmp_path / "state", "500", "--", "sh", "-euc", LOOK]
        done = subprocess.run(
            argv, env=microvm_cli.env, capture_output=True, input=b"", check=False
        )
    finally:
        shutil.rmtree(runner)
    assert done.returncode == 0, done.stderr.decode()
    known = hashlib.sha256(SECRET).hexdigest()
    assert done.stdout.decode().split("\n") == [
        "700 0", "400 0", f"{known}  -", "plain", "z.other_1@x-y", f"{known}  -", "",
    ]  # fmt: skip
