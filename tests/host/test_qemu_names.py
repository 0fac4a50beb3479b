"""Files are opened by the name that was declared, whatever QEMU's option syntax makes of such."""

import os
import subprocess
from itertools import pairwise

import pytest

from microvm.errors import ApiError
from microvm.host.process import Deadline
from microvm.host.qmp import Qmp
from microvm.hypervisors import hypervisor
from microvm.hypervisors.qemu import PROGRAM
from microvm.model.declaration import MicroVM
from microvm.model.devices import Share, Volume
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.guest import GuestSystem, Layer
from microvm.model.runner import Runner
from microvm.model.system import DebianSystem

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

ODD_NAMES = [
    "-x,readonly", "a,file=b", ",", "a,,b", "two words", "nbd:localhost:1", "json:{}", "fat:x",
    "a:b", "%41", "$HOME", "back\\slash", "'\"", "ünïcode", "id=x,if=none", "file.driver=file",
]  # fmt: skip
TAKEN = ("-drive", "-fsdev", "-fw_cfg", "-qmp")
"""Options of the plan that name files; the device opens the directory of -fsdev."""


def socket_of(name):
    return f"{name}.sock"


@pytest.fixture
def options(tmp_path):
    """Return what the plan says about files whose names are all `name`."""

    def make(name):
        for place in ("state", "project", "store/image", "store/kernel"):
            (tmp_path / place).mkdir(parents=True)
        (tmp_path / "store/image/image").write_bytes(bytes(4096))
        (tmp_path / "state" / name).write_bytes(bytes(1 << 20))
        (tmp_path / "project" / name).mkdir()
        (tmp_path / "project" / f"{name}.key").write_text("secret")
        vm = MicroVM(
            system=DebianSystem(kernel="generic"),
            volumes=(Volume(image=name, auto_create=False),),
            shares=(Share(tag="s", source=name, mount_point="/s", proto="9p"),),
            credential_files={"key": f"{name}.key"},
            socket=socket_of(name),
        )
        system = GuestSystem(
            name="s", source="debian", description="d", architecture="x86_64", kernel="kernel",
            kernel_release="1", initrd="kernel", features=(), kernel_params=(),
            layers=(Layer(name="base", tree="t", image="image", kind="erofs", uuid="u"),),
        )  # fmt: skip
        facts = Facts(
            accelerator=Accelerator(kind="tcg", reason=""),
            programs={PROGRAM: Program(path=PROGRAM, version=(10, 0))},
            state_dir=str(tmp_path / "state"), project_dir=str(tmp_path / "project"),
            store_dir=str(tmp_path / "store"), machine_id="1" * 32,
        )  # fmt: skip
        runner = Runner(schema=1, name="vm", microvm=vm, system=system)
        argv = hypervisor("qemu").plan(runner, facts).argv
        pairs = [
            pair for pair in pairwise(argv) if pair[0] in TAKEN or pair[1].startswith("virtio-9p")
        ]
        assert {option for option, _ in pairs} == {*TAKEN, "-device"}
        return [word for pair in pairs for word in pair]

    return make


@pytest.mark.parametrize("name", ODD_NAMES)
def test_qemu_opens_what_was_declared(name, options, tmp_path, tool):
    state = tmp_path / "state"
    words = options(name)
    command = [tool(PROGRAM), "-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none"]
    with (tmp_path / "log").open("wb") as log:
        qemu = subprocess.Popen([*command, "-S", *words], cwd=state, stdout=log, stderr=log)
    try:
        qmp = wait_for(state / socket_of(name), qemu, tmp_path / "log")
        opened = {drive["device"]: drive["inserted"]["file"] for drive in qmp.call("query-block")}
        assert opened == {"layer0": str(tmp_path / "store/image/image"), "volume0": name}
        qmp.call("quit")
        qmp.close()
        assert qemu.wait(60) == 0
    finally:
        qemu.kill()
        qemu.wait()
    assert {path.name for path in state.iterdir()} <= {name, socket_of(name)}


def wait_for(path, qemu, log):
    deadline = Deadline(60)
    while not deadline.expired:
        try:
            return Qmp(path)
        except ApiError:
            assert qemu.poll() is None, log.read_text()
            os.sched_yield()
    pytest.fail(f"{path} did not appear: {log.read_text()}")
