"""What VMMs that fail get, each as every hypervisor: one message, a status, nothing left behind."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import fake_vmm
import pytest
from fake_vmm import KINDS

from microvm.errors import HostError, StateError
from microvm.host import image_locks, kvm, stream
from microvm.hypervisors import hypervisor
from microvm.launch import control, foreground, starting
from microvm.model.declaration import MicroVM
from microvm.model.devices import Share, Volume
from microvm.model.facts import Accelerator, Facts, Program

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
each = pytest.mark.parametrize("kind", KINDS)
VOLUME = Volume(image="data.img", size=16)


@pytest.fixture
def state(tmp_path, tool):
    """A state directory that has to look the same after a run as before."""
    tool("mkfs.ext4")
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


@pytest.fixture
def run(tmp_path, state):
    """Run a VMM that does this in the foreground, and see that nothing of it is left."""

    def start(kind, code, *, known=None, fields=None, **options):
        declared = {"volumes": (VOLUME,), **(fields or {})}
        plan = fake_vmm.plan(kind, tmp_path, textwrap.dedent(code), known=known, **declared)
        for number in starting.prepare(plan, state, reset_root=False):
            os.close(number)
        before = (state / "data.img").read_bytes()
        goal = foreground.Options(**{"up_timeout_s": 30.0, "stop_timeout_s": 30.0, **options})
        try:
            with starting.machine_lock(state, "vm") as lock:
                return foreground.carry_out(plan, lock, state_dir=state, options=goal)
        finally:
            assert (state / "data.img").read_bytes() == before
            given_back(state)

    return start


def given_back(state):
    """Nobody works in the state directory, nothing listens there, nothing is locked."""
    assert [path for path in state.rglob("*") if path.is_socket()] == []
    at_work = [
        entry for entry in Path("/proc").glob("[0-9]*/cwd") if _link(entry).startswith(str(state))
    ]
    assert at_work == []
    os.close(image_locks.lock(state / "data.img", read_only=False))
    with starting.machine_lock(state, "vm"):
        pass


def _link(path):
    try:
        return str(path.readlink())
    except OSError:
        return ""


@each
def test_a_vmm_that_dies_at_start_has_the_last_word(kind, run):
    ended = run(kind, "sys.exit('no such kernel')")
    assert (ended.exit_code, ended.reason) == (1, "the VMM ended with status 1")
    assert "no such kernel" in ended.console


@each
def test_a_vmm_that_is_killed_is_told_as_that(kind, run):
    ended = run(kind, "serve(); say('half a line'); os.kill(os.getpid(), 9)")
    assert (ended.exit_code, ended.reason) == (1, "the VMM was killed by SIGKILL")
    assert "half a line" in ended.console


@each
def test_a_vmm_that_hangs_before_its_socket_opens_is_ended(kind, run):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('wait', file=sys.stderr); time.sleep(100)"
    ended = run(kind, code.replace("; ", "\n"), up_timeout_s=1.0)
    assert (ended.exit_code, ended.reason) == (1, "the guest was not up within 1 s")
    assert "--boot-timeout" in ended.hint
    assert "wait" in ended.console


@each
def test_a_vmm_that_closes_its_socket_still_ends_in_time(kind, run):
    ended = run(
        kind,
        """
        server = listener()
        say(UP)
        for _ in range(2):
            server.accept()[0].close()
        server.close()
        os.unlink(SOCKET)
        time.sleep(100)
        """,
        until_up=True, stop_timeout_s=4.0,
    )  # fmt: skip
    assert ended.exit_code == 1
    assert ended.reason == "the guest did not shut down within 4 s and was killed"


@each
def test_a_guest_that_ignores_a_shutdown_is_killed_and_that_is_said(kind, run):
    ended = run(kind, "serve(); say(UP); time.sleep(100)", until_up=True, stop_timeout_s=1.0)
    assert ended.exit_code == 1
    assert ended.reason == "the guest did not shut down within 1 s and was killed"


@each
def test_stale_sockets_and_locks_of_a_killed_vmm_are_no_obstacle(kind, run, state, tmp_path):
    plan = fake_vmm.plan(kind, tmp_path, "", volumes=(VOLUME,))
    assert plan.watch in plan.sockets
    assert plan.control in plan.sockets
    for name in plan.sockets:
        (state / name).parent.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(state / name))
    for name in plan.locks:
        (state / name).touch()
    ended = run(kind, "serve(); say(UP + OFF)")
    assert (ended.exit_code, ended.reason) == (0, "the guest powered off")


HOG = """
import os, resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
import fake_vmm
from microvm.hypervisors import hypervisor
from microvm.launch import foreground, starting
from microvm.model.declaration import MicroVM
place = Path({place!r})
plan = fake_vmm.plan({kind!r}, place, {code!r})
with starting.machine_lock(place / "state", "vm") as lock:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = foreground.carry_out(plan, lock, state_dir=place / "state", options=foreground.Options())
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(ended.exit_code, ended.reason, len(ended.console), grown, sep="|", file=sys.stderr)
"""


@each
def test_a_vmm_that_prints_100_mb_takes_no_room(kind, tmp_path, state):
    code = """
import time
for _ in range(400):
    os.write(1, b"x" * 127 + b"\\n" + b"y" * 130944)
    os.write(2, b"z" * 127 + b"\\n" + b"z" * 130944)
    time.sleep(0.002)
sys.exit(3)
"""
    program = HOG.format(path=sys.path, place=str(tmp_path), kind=kind, code=code)
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.PIPE, text=True, timeout=100, check=True,
        )  # fmt: skip
    status, reason, shown, grown = done.stderr.strip().split("|")
    assert (status, reason) == ("1", "the VMM ended with status 3")
    assert (tmp_path / "out").stat().st_size > 50_000_000
    assert int(shown) < 200_000
    assert int(grown) < 40_000, "KiB"
    assert (state / "vmm.log").stat().st_size < 30 << 20


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor", "crosvm"])
def test_a_virtiofsd_that_dies_ends_the_run(kind, run, tmp_path):
    helper = tmp_path / "virtiofsd"
    helper.write_text("#!/bin/sh\necho 'no such directory' >&2\nexit 9\n")
    helper.chmod(0o755)
    (tmp_path / "shared").mkdir()
    known = {"programs": {"virtiofsd": Program(path=str(helper), version=(1, 13), flavour="rust")}}
    fields = {"shares": (Share(tag="s", source="shared", mount_point="/s"),)}
    ended = run(kind, "serve(); say(UP); time.sleep(100)", known=known, fields=fields)
    assert ended.exit_code == 1
    assert ended.reason == "virtiofsd-s ended with status 9 while the machine ran"
    assert "no such directory" in ended.console


@each
def test_a_program_that_can_not_be_started_is_told(kind, tmp_path, state):
    plan = fake_vmm.plan(kind, tmp_path, "")
    program = Path(plan.argv[0])
    program.write_text("#!/no/such/interpreter\n")
    options = foreground.Options()
    with (
        starting.machine_lock(state, "vm") as lock,
        pytest.raises(HostError, match=f"could not start {program}: No such file"),
    ):
        foreground.carry_out(plan, lock, state_dir=state, options=options)
    assert [path for path in state.rglob("*") if path.is_socket()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_can_not_have_one_image_but_for_reading(kind, tmp_path, state):
    """While a VMM runs that inherited the lock, as after `bin/microvm-run`, and not after it."""
    plan = fake_vmm.plan(kind, tmp_path, "time.sleep(100)", volumes=(VOLUME,))
    held = starting.prepare(plan, state, reset_root=False)
    vmm = subprocess.Popen(
        plan.argv, cwd=state, pass_fds=held, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    for number in held:
        os.close(number)
    other = tmp_path / "other"
    other.mkdir()
    second = {"image": "../state/data.img", "size": 16}
    try:
        for other_kind in KINDS:
            for read_only in (False, True):
                volumes = (Volume(**second, read_only=read_only),)
                wanted = fake_vmm.plan(other_kind, other, "", volumes=volumes)
                with pytest.raises(StateError, match=f"in use by .* process {vmm.pid}"):
                    starting.prepare(wanted, other, reset_root=False)
    finally:
        vmm.kill()
        vmm.wait()
    readers = tuple(
        starting.prepare(
            fake_vmm.plan(one, other, "", volumes=(Volume(**second, read_only=True),)),
            other,
            reset_root=False,
        )
        for one in KINDS
    )
    for number in (each for held in readers for each in held):
        os.close(number)


@each
def test_a_machine_that_was_killed_needs_no_shutdown(kind, tmp_path, state):
    plan = fake_vmm.plan(kind, tmp_path, "")
    (state / plan.control).parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(state / plan.control))
    runner = fake_vmm.runner(kind)
    assert control.shutdown_machine(runner, state, timeout_s=5) == "it is not running"


HOLDER = """
import fcntl, struct, sys, time
lock = open(sys.argv[1], "w")
if sys.argv[2] == "flock":
    fcntl.flock(lock, fcntl.LOCK_EX)
else:
    fcntl.fcntl(lock, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print(flush=True)
time.sleep(float(sys.argv[3]))
"""


def holder(path, how, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how, str(seconds)], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_a_vmm_that_is_still_dying_is_waited_for(tmp_path, state):
    """Its launcher is gone: the recorded process is no more, but the lock is held."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    dying = holder(state / "lock", "flock", 1)
    (state / "lock").write_text(f"{gone.pid}\n")
    began = time.monotonic()
    with starting.machine_lock(state, "vm"):
        assert time.monotonic() - began > 0.5
    dying.communicate()


def test_a_machine_that_runs_is_not_waited_for(state):
    running = holder(state / "lock", "flock", 60)
    (state / "lock").write_text(f"{running.pid}\n")
    began = time.monotonic()
    try:
        with (
            pytest.raises(StateError, match=f"running already .process {running.pid}"),
            starting.machine_lock(state, "vm"),
        ):
            pass
    finally:
        running.kill()
        running.communicate()
    assert time.monotonic() - began < 3


def test_the_lock_beside_a_socket_of_cloud_hypervisor_is_waited_for(tmp_path, state):
    plan = fake_vmm.plan("cloud-hypervisor", tmp_path, "")
    dying = holder(state / plan.locks[0], "ofd", 1)
    began = time.monotonic()
    assert starting.prepare(plan, state, reset_root=False) == []
    assert time.monotonic() - began > 0.5
    dying.communicate()


@each
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_missing_program_is_named_before_anything_is_built(kind, verb, microvm_cli, tmp_path):
    section = kind.replace("-", "_")
    (tmp_path / "microvm.toml").write_text(
        f"[microvms.vm]\nhypervisor = '{kind}'\n{section}.program = '/no/such/vmm'\n"
    )
    store = tmp_path / "store"
    ran = microvm_cli(verb, str(tmp_path), "--store", str(store), timeout=110)
    assert ran.returncode == 4, ran.stderr
    assert ", /no/such/vmm, is not there" in ran.stderr
    without = kind != "qemu" and verb == "run" and kvm.obstacle() is not None
    assert ("needs hardware virtualisation" in ran.stderr) == without  # in the same message
    assert not list(store.glob("*-*"))
    assert not (tmp_path / "microvm.lock").exists()
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("kind", "version", "said"),
    [
        ("cloud-hypervisor", (39, 0), "it needs cloud-hypervisor 40, this is 39.0"),
        ("firecracker", (1, 7), "it needs firecracker 1.8, this is 1.7"),
    ],
)
def test_a_program_that_is_too_old_is_told_both_versions(kind, version, said, tmp_path):
    backend = hypervisor(kind)
    old = Program(path="/x", version=version)
    known = Facts(
        accelerator=Accelerator(kind="kvm", reason=""), programs={backend.program: old},
        state_dir="/", project_dir="/", store_dir="/", machine_id="1" * 32,
    )  # fmt: skip
    [problem] = backend.check(MicroVM(hypervisor=kind), known)
    assert problem.message == said
    assert "install a later" in problem.hint
    new = replace(known, programs={backend.program: replace(old, version=())})
    assert backend.check(MicroVM(hypervisor=kind), new) == []


NOBODY = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from microvm.errors import MicroVMError
from microvm.host import kvm, network, passthrough, stream
from microvm.model.devices import Device
from microvm.model.plan import TapPlan
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    {code}
    print("no error")
except MicroVMError as error:
    print(error.message, error.hint, sep="|")
"""


def let_others_enter(place):
    for directory in (place, *place.parents):
        if directory.stat().st_uid == os.geteuid() and directory.stat().st_mode & 0o1 == 0:
            directory.chmod(directory.stat().st_mode | 0o1)


@pytest.fixture
def as_nobody():
    if os.geteuid() != 0:
        pytest.skip("needs root to become nobody")

    readable = subprocess.run(
        [sys.executable, "-c", NOBODY.format(path=sys.path, code="pass")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if readable.returncode != 0:
        pytest.skip(f"nobody can't read this checkout: {readable.stderr[-200:]}")

    def run(code, covered=None):
        program = [sys.executable, "-c", NOBODY.format(path=sys.path, code=code)]
        if covered:  # a device that only root may open, in a mount namespace of its own
            script = 'node=$(mktemp); mount --bind $node "$1"; rm $node; shift; exec "$@"'
            program = ["unshare", "-m", "sh", "-ec", script, "sh", covered, *program]
        done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.skipif(not kvm.KVM.exists(), reason="the host has no /dev/kvm")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qemu"])
def test_kvm_without_permission_is_told_with_the_way_out(kind, as_nobody):
    said = as_nobody(f"raise kvm.lack({kind!r}, emulates=False, declared=None)", "/dev/kvm")
    assert f"{kind} needs hardware virtualisation, but no permission on /dev/kvm" in said
    assert "usermod -aG kvm" in said
    assert "--hypervisor qemu" in said
    shown = as_nobody(f"print(kvm.only({kind!r}))", "/dev/kvm")
    assert "it would not start here: no permission on /dev/kvm" in shown


@pytest.mark.skipif(not kvm.KVM.exists(), reason="the host has no /dev/kvm")
def test_kvm_that_is_declared_is_refused_by_a_run_and_shown_by_a_plan(as_nobody):
    said = as_nobody("kvm.accelerator(None, Path(), 'kvm')", "/dev/kvm")
    assert "accel is kvm, but no permission on /dev/kvm" in said
    shown = as_nobody("print(kvm.accelerator(None, Path(), 'kvm', dry=True))", "/dev/kvm")
    assert "kind='kvm', reason='it would not start here: no permission on /dev/kvm" in shown


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="the host has no /dev/net/tun")
@pytest.mark.parametrize("covered", [None, "/dev/net/tun"])
def test_a_tap_without_permission_is_told_with_the_way_out(covered, as_nobody):
    said = as_nobody("network.tap_up(TapPlan(name='mvnobody', bridge=None), 65534)", covered)
    assert (
        said == "no permission to make the tap mvnobody|run as root, or with CAP_NET_ADMIN;"
        " some hypervisors have interfaces of type `user`"
    )


def test_a_vmm_of_another_user_is_not_taken_for_none(as_nobody, tmp_path):
    let_others_enter(tmp_path)
    path = tmp_path / "qmp.sock"
    with stream.listening(path, None):
        said = as_nobody(f"stream.reach(Path({str(path)!r}), name='QEMU', timeout_s=1)")
    assert said == f"no permission to connect to QEMU at {path}|run as its user, or as root"


def test_a_vfio_group_without_permission_is_told_with_the_way_out(as_nobody, tmp_path):
    let_others_enter(tmp_path)
    device = tmp_path / "sys/bus/pci/devices/0000:03:00.0"
    device.mkdir(parents=True)
    for name, target in (("driver", "vfio-pci"), ("iommu_group", "7")):
        (tmp_path / name / target).mkdir(parents=True)
        (device / name).symlink_to(tmp_path / name / target)
    group = tmp_path / "dev/vfio/7"
    group.parent.mkdir(parents=True)
    group.touch(0o600)
    wanted = "Device(bus='pci', path='0000:03:00.0')"
    said = as_nobody(f"passthrough.check([{wanted}], root=Path({str(tmp_path)!r}))")
    assert f"no permission on {group}" in said
    assert "udev rule" in said


def test_signals_end_a_vmm_that_takes_none(run):
    code = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve()
        say(UP)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(100)
    """
    ended = run("firecracker", code, stop_timeout_s=1.0)
    assert ended.exit_code == 128 + signal.SIGTERM
    assert ended.reason == (
        "ended by SIGTERM; the guest did not shut down within 1 s and was killed"
    )


def test_a_runners_script_hands_its_locks_to_the_vmm(microvm_cli, mirror, tmp_path, tool):
    """By different paths of one image, and in another state directory."""
    tool("mkfs.ext4")
    mirrored = f"system.mirror = '{mirror}'\n" if mirror else ""
    vmm = tmp_path / "qemu"
    vmm.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'QEMU emulator version 10.0.2' && exit\n"
        "touch started; exec sleep 100\n"
    )
    vmm.chmod(0o755)
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    running = []
    try:
        for name, place in (("web", "images"), ("web", "images"), ("db", "link")):
            (tmp_path / "microvm.toml").write_text(
                f"[microvms.{name}]\naccel = 'tcg'\nqemu.program = '{vmm}'\n"
                f"volumes = [{{ image = '{tmp_path}/{place}/data.img', size = 16 }}]\n{mirrored}"
            )
            built = microvm_cli("build", f"{tmp_path}#{name}", timeout=600)
            assert built.returncode == 0, built.stderr
            state = tmp_path / name
            state.mkdir(exist_ok=True)
            launcher = Path(sys.executable).with_name("microvm-launch")
            process = subprocess.Popen(
                [f"{built.stdout.strip()}/bin/microvm-run"], cwd=state, stderr=subprocess.PIPE,
                env={**microvm_cli.env, "MICROVM_LAUNCHER": str(launcher)}, text=True,
            )  # fmt: skip
            running.append(process)
            if len(running) == 1:
                deadline = time.monotonic() + 60
                while not (state / "started").exists():
                    assert process.poll() is None, process.stderr.read()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                continue
            said = process.communicate(timeout=60)[1]
            assert process.returncode == 5, said
            assert f"process {running[0].pid}" in said
            if name == "web":
                assert "the machine web is running already" in said
            else:
                assert f"in use by another VMM (machine web, process {running[0].pid})" in said
                assert not (state / "started").exists()
    finally:
        for process in running:
            process.kill()
            process.communicate()
