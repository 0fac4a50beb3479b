"""Controls of running VMMs, with peers on real Unix sockets that speak their HTTP APIs."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from http_peer import answer, request

from microvm.errors import (
    ApiError,
    DeadlineExceeded,
    HostError,
    StateError,
    UnsupportedOperation,
)
from microvm.host import files, stream
from microvm.hypervisors import hypervisor
from microvm.launch import control
from microvm.model.declaration import MicroVM
from microvm.model.guest import GuestSystem
from microvm.model.options import CrosvmOptions
from microvm.model.runner import Runner

MIB = 1 << 20


class Vmm:
    """Answers each request by a table, and remembers what was asked; connections come and go."""

    def __init__(self, path, answers):
        self.path = path
        self.answers = answers
        self.asked = []
        self.listener = socket.socket(socket.AF_UNIX)
        with stream.address(path) as name:
            self.listener.bind(name)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            with connection:
                if not connection.recv(1, socket.MSG_PEEK):
                    continue  # somebody looked whether we are alive
                method, target, body = request(connection)
                if method != "GET":
                    self.asked.append((method, target, body))
                status, words = self.answers.get((method, target), ("204 ", None))
                connection.sendall(answer(words, status))
                if target == "/api/v1/vmm.shutdown":
                    self.close()

    def close(self):
        self.path.unlink(missing_ok=True)
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def end(self):
        self.close()
        self.thread.join(10)
        self.listener.close()
        assert not self.thread.is_alive()


@pytest.fixture
def vmm(tmp_path):
    @contextmanager
    def serve(kind, answers=None):
        found = Vmm(tmp_path / "api.sock", answers or {})
        try:
            yield found, hypervisor(kind).control(found.path, timeout_s=5)
        finally:
            found.end()

    return serve


KINDS = ("cloud-hypervisor", "firecracker")
POWER = {
    "cloud-hypervisor": ("PUT", "/api/v1/vm.power-button", None),
    "firecracker": ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_there_is_an_error(kind, tmp_path):
    with pytest.raises(ApiError, match=f"could not reach {kind}: nobody listens"):
        hypervisor(kind).control(tmp_path / "api.sock", timeout_s=1)


@pytest.mark.parametrize("kind", KINDS)
def test_either_way_to_shut_down_is_the_one_that_it_has(kind, vmm):
    with vmm(kind) as (peer, running):
        running.shut_down(power_button=True)
        running.shut_down(power_button=False)
        assert not running.was_reset()
    assert peer.asked == [POWER[kind]] * 2


def info(*, state="Running", balloon=0, **memory):
    size = None if balloon is None else {"size": balloon}
    config = {"memory": {"size": 1024 * MIB, **memory}, "balloon": size}
    return {("GET", "/api/v1/vm.info"): ("200 ", {"config": config, "state": state})}


PLUGGABLE = {"hotplug_size": 512 * MIB}


@pytest.mark.parametrize(
    ("known", "size", "request_"),
    [
        (info(), 1024, {"desired_balloon": 0}),
        (info(), 1, {"desired_balloon": 1023 * MIB}),
        (info(**PLUGGABLE), 600, {"desired_balloon": 424 * MIB}),
        (info(**PLUGGABLE), 1536, {"desired_ram": 1536 * MIB, "desired_balloon": 0}),
        (
            info(**PLUGGABLE, hotplugged_size=128 * MIB),
            1000,
            {"desired_ram": 1024 * MIB, "desired_balloon": 24 * MIB},
        ),
        (info(**PLUGGABLE, hotplugged_size=128 * MIB), 1152, {"desired_balloon": 0}),
        (info(balloon=None, **PLUGGABLE), 1100, {"desired_ram": 1100 * MIB}),
    ],
)
def test_cloud_hypervisor_s_size_is_what_the_guest_has(known, size, request_, vmm):
    with vmm("cloud-hypervisor", known) as (peer, running):
        running.set_memory(size)
    assert peer.asked == [("PUT", "/api/v1/vm.resize", request_)]


def test_a_size_that_is_there_already_is_not_asked_for_again(vmm):
    known = info(balloon=None, **PLUGGABLE, hotplugged_size=128 * MIB)
    with vmm("cloud-hypervisor", known) as (peer, running):
        running.set_memory(1152)  # it would refuse the same size (virtio-devices/src/mem.rs)
    assert peer.asked == []


def machine(*, balloon=True, region=0, plugged=0):
    config = {
        "machine-config": {"mem_size_mib": 1024},
        "balloon": {"amount_mib": 0} if balloon else None,
        "memory-hotplug": {"total_size_mib": region} if region else None,
    }
    return {
        ("GET", "/vm/config"): ("200 ", config),
        ("GET", "/hotplug/memory"): ("200 ", {"requested_size_mib": plugged}),
    }


@pytest.mark.parametrize(
    ("known", "size", "requests"),
    [
        (machine(), 1024, [("PATCH", "/balloon", {"amount_mib": 0})]),
        (machine(), 1, [("PATCH", "/balloon", {"amount_mib": 1023})]),
        (
            machine(region=256),
            1280,
            [
                ("PATCH", "/hotplug/memory", {"requested_size_mib": 256}),
                ("PATCH", "/balloon", {"amount_mib": 0}),
            ],
        ),
        (
            machine(region=256, plugged=128),
            512,
            [
                ("PATCH", "/hotplug/memory", {"requested_size_mib": 0}),
                ("PATCH", "/balloon", {"amount_mib": 512}),
            ],
        ),
        (
            machine(region=256, plugged=128),
            1152,
            [("PATCH", "/balloon", {"amount_mib": 0})],
        ),
        (
            machine(region=256, balloon=False),
            1100,
            [("PATCH", "/hotplug/memory", {"requested_size_mib": 76})],
        ),
    ],
)
def test_firecracker_s_size_is_what_the_guest_has(known, size, requests, vmm):
    with vmm("firecracker", known) as (peer, running):
        running.set_memory(size)
    assert peer.asked == requests


@pytest.mark.parametrize(
    ("kind", "known"),
    [("cloud-hypervisor", info()), ("firecracker", machine())],
    ids=KINDS,
)
@pytest.mark.parametrize("size", [0, 1025, 10**9])
def test_more_than_there_is_is_refused_before_the_guest_notices(kind, known, size, vmm):
    said = rf"1 to 1024 MiB, not {size}"
    with vmm(kind, known) as (peer, running), pytest.raises(ApiError, match=said):
        running.set_memory(size)
    assert peer.asked == []


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("cloud-hypervisor", info(balloon=None, **PLUGGABLE)),
        ("firecracker", machine(balloon=False, region=256)),
    ],
    ids=KINDS,
)
def test_less_than_the_memory_at_boot_needs_a_balloon(kind, known, vmm):
    said = "without a balloon"
    with vmm(kind, known) as (_, running), pytest.raises(UnsupportedOperation, match=said):
        running.set_memory(512)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [{}, [], {"config": 1}, {"machine-config": {}}, None])
def test_a_configuration_that_tells_no_size_is_an_error(kind, said, vmm):
    known = {("GET", t): ("200 ", said) for t in ("/api/v1/vm.info", "/vm/config")}
    with vmm(kind, known) as (_, running), pytest.raises(ApiError, match="told no memory size"):
        running.set_memory(512)


def test_cloud_hypervisor_pauses_only_what_runs(vmm):
    with vmm("cloud-hypervisor", info(state="Paused")) as (peer, running):
        running.pause()
        running.resume()
    assert peer.asked == [("PUT", "/api/v1/vm.resume", None)]
    peer.path.unlink(missing_ok=True)
    with vmm("cloud-hypervisor", info()) as (peer, running):
        running.resume()
        running.pause()
    assert peer.asked == [("PUT", "/api/v1/vm.pause", None)]


def test_firecracker_pauses(vmm):
    with vmm("firecracker") as (peer, running):
        running.pause()
        running.resume()
    assert peer.asked == [
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PATCH", "/vm", {"state": "Resumed"}),
    ]


def test_cloud_hypervisor_is_asked_to_end(vmm):
    with vmm("cloud-hypervisor") as (peer, running):
        running.quit()
        peer.thread.join(10)
        assert not stream.listens(peer.path)


def test_firecracker_is_killed_as_it_can_not_be_asked(tmp_path):
    path = tmp_path / "api.sock"
    code = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); "
        "s.listen(8); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        running = hypervisor("firecracker").control(path, timeout_s=5)
        running.quit()
        assert process.wait(10) == -signal.SIGKILL
    with pytest.raises(ApiError, match="nobody listens"):
        running.quit()


def runner(kind, **fields):
    system = GuestSystem(
        name="s", source="debian", description="d", architecture="x86_64", kernel="k",
        kernel_release="1", initrd="i", features=(), layers=(), kernel_params=(),
    )  # fmt: skip
    declared = MicroVM(hypervisor=kind, socket="api.sock", **fields)
    return Runner(schema=1, name="vm", microvm=declared, system=system)


@pytest.fixture
def process(tmp_path):
    """Run a peer in a process of its own, since a shutdown may end with its end.

    It has the machine's lock open, as its VMM has.
    """
    with ExitStack() as stack:
        lock = stack.enter_context((tmp_path / "lock").open("w"))

        def start(code, *arguments, vmm=True):
            inherits = [lock.fileno()] if vmm else []
            words = [sys.executable, "-c", code, str(tmp_path / "api.sock"), *arguments]
            started = stack.enter_context(
                subprocess.Popen(words, stdout=subprocess.PIPE, pass_fds=inherits)
            )
            stack.callback(started.kill)
            assert started.stdout.readline() == b"ready\n"
            return started

        yield start


REFUSING = """
import socket, sys
sys.path.insert(0, sys.argv[2])
from http_peer import answer, request
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(8)
print("ready", flush=True)
refusals = int(sys.argv[3])
while True:
    connection, _ = listener.accept()
    if connection.recv(1, socket.MSG_PEEK):
        target = request(connection)[1]
        if target == "/api/v1/vmm.shutdown":
            break
        if refusals == 0:
            connection.sendall(answer(None, "204 "))
            break
        refusals -= 1
        connection.sendall(answer(["VM is not running"], "500 "))
"""
SILENT = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(int(sys.argv[2]))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_refused_shutdown_ends_in_the_end_of_the_vmm_and_is_told(tmp_path, process):
    peer = process(REFUSING, str(Path(__file__).parent), "999")
    said = control.shutdown_machine(runner("cloud-hypervisor"), tmp_path, timeout_s=0.6)
    assert "VM is not running" in said
    assert said.endswith("the VMM was ended")
    assert peer.wait(10) == 0


def test_a_guest_that_does_not_listen_yet_is_asked_again(tmp_path, process, monkeypatch):
    """One that boots: kvmtool's guest is asked by a program of its own."""
    monkeypatch.setattr(control, "AGAIN_S", 0.1)
    peer = process(REFUSING, str(Path(__file__).parent), "1")
    said = control.shutdown_machine(runner("cloud-hypervisor"), tmp_path, timeout_s=30)
    assert said == "the guest powered off"
    assert peer.wait(10) == 0


def test_crosvm_that_hangs_is_killed_too(tmp_path, process, monkeypatch):
    """Its socket is of packets, and its own program asks it."""
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    program = tmp_path / "crosvm"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    peer = process(SILENT.replace("socket.AF_UNIX", "socket.AF_UNIX, socket.SOCK_SEQPACKET"), "8")
    running = runner("crosvm", crosvm=CrosvmOptions(program=str(program)))
    said = control.shutdown_machine(running, tmp_path, timeout_s=1)
    assert said.endswith("the VMM was killed")
    assert peer.wait(10) == -signal.SIGKILL


def test_crosvm_without_its_program_is_ended_all_the_same(tmp_path, process):
    peer = process(SILENT, "8")
    gone = CrosvmOptions(program=str(tmp_path / "gone"))
    said = control.shutdown_machine(runner("crosvm", crosvm=gone), tmp_path, timeout_s=40)
    assert "asked by its own program, which is missing" in said
    assert said.endswith("the VMM was killed")
    assert peer.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor", "firecracker", "kvmtool"])
def test_a_vmm_that_hangs_is_killed_at_the_end_of_the_time(kind, tmp_path, process, monkeypatch):
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    peer = process(SILENT, "8")
    said = control.shutdown_machine(runner(kind), tmp_path, timeout_s=1)
    # firecracker's is the one that is always killed: it can't be told to end.
    assert said.endswith("the VMM was ended" if kind == "firecracker" else "the VMM was killed")
    assert peer.wait(10) == -signal.SIGKILL


def test_a_hung_vmm_whose_queue_is_full_is_killed_too(tmp_path, process, monkeypatch):
    """QEMU's has two places: one of them stays taken when a `microvm-shutdown` is interrupted."""
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    peer = process(SILENT, "0")
    with stream.connect(tmp_path / "api.sock"):
        said = control.shutdown_machine(runner("qemu"), tmp_path, timeout_s=0.6)
    assert said.startswith("the VMM did not answer (QEMU takes no connection")
    assert said.endswith("the VMM was killed")
    assert peer.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor", "firecracker", "kvmtool"])
def test_what_is_no_vmm_of_the_machine_is_left_alone(kind, tmp_path, process):
    peer = process(SILENT, "8", vmm=False)
    with pytest.raises(HostError, match=rf"process {peer.pid} listens on .* no VMM of vm: it"):
        control.shutdown_machine(runner(kind), tmp_path, timeout_s=0.3)
    assert peer.poll() is None


BREAKING_OFF = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(8)
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    connection, _ = listener.accept()
    connection.close()
time.sleep(0.4)
"""


def test_a_vmm_that_is_just_ending_has_ended(tmp_path, process):
    peer = process(BREAKING_OFF, "3")  # two come to look who is there
    assert control.shutdown_machine(runner("qemu"), tmp_path, timeout_s=5) == "the VMM ended"
    assert peer.wait(0) == 0, "it is said when it is true"


def test_a_machine_that_runs_without_a_socket_is_not_taken_for_stopped(tmp_path):
    """It starts, or ends, and is waited for; or something took its socket away."""
    with files.lock(tmp_path / "lock"):
        with pytest.raises(HostError, match=r"vm runs.*, but nobody listens on"):
            control.shutdown_machine(runner("qemu"), tmp_path, timeout_s=0.2)
        ended = threading.Timer(0.2, os.unlink, [tmp_path / "lock"])  # as good as let go of
        ended.start()
        said = control.shutdown_machine(runner("qemu"), tmp_path, timeout_s=20)
        ended.join()
    assert said == "it is not running"


def test_what_another_program_keeps_busy_is_not_taken_for_nobody(tmp_path, process, monkeypatch):
    """As QEMU does, which serves one client: others wait in a queue that is soon full."""
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    process(SILENT, "0")
    path = tmp_path / "api.sock"
    said = []
    with stream.connect(path):
        for _ in range(2):
            with pytest.raises(DeadlineExceeded) as failure:
                control.set_balloon(runner("qemu", balloon=True), tmp_path, 512)
            said.append(failure.value.message)
    assert all("takes no connection" in each for each in said), said
    assert "others wait there already" in said[0]


def test_a_guest_that_can_not_be_asked_is_not_waited_for(tmp_path, process, monkeypatch):
    """As kvmtool's where the host has no vsock."""
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    process(SILENT, "8")
    began = time.monotonic()
    said = control.shutdown_machine(runner("kvmtool"), tmp_path, timeout_s=40)
    assert time.monotonic() - began < 10
    assert said.startswith("the guest can not be asked to power off (kvmtool's guest can't be")


def test_a_machine_with_hot_plug_memory_takes_a_size_without_a_balloon(tmp_path, vmm):
    with vmm("firecracker", machine(balloon=False, region=256)) as (peer, _):
        control.set_balloon(runner("firecracker", hotplug_mem=256), tmp_path, 1280)
        with pytest.raises(UnsupportedOperation, match="no balloon"):
            control.set_balloon(runner("firecracker"), tmp_path, 512)
    assert peer.asked == [("PATCH", "/hotplug/memory", {"requested_size_mib": 256})]


def test_a_guest_is_not_starved(tmp_path):
    with pytest.raises(UnsupportedOperation, match="1 MiB is too little memory") as failure:
        control.set_balloon(runner("qemu", balloon=True), tmp_path, 1)
    assert "at least 32" in failure.value.hint


def test_the_peer_is_this_process(vmm):
    with vmm("firecracker") as (peer, _):
        assert stream.owner(peer.path) == os.getpid()


def serve_as_kvmtool(listener, got):
    """Accept one connection for each time that some came, as kvm-ipc.c does, until one is taken."""
    clients = {}
    with select.epoll() as epoll:
        epoll.register(listener, select.EPOLLIN | select.EPOLLET)
        time.sleep(0.3)  # busy: what comes meanwhile is one event
        while (not got or clients) and (events := epoll.poll(10)):
            for number, event in events:
                if number == listener.fileno():
                    client, _ = listener.accept()
                    while head := client.recv(8):
                        got.append(struct.unpack("II", head))
                    clients[client.fileno()] = client
                    epoll.register(client, select.EPOLLIN | select.EPOLLRDHUP)
                elif event & select.EPOLLRDHUP:
                    epoll.unregister(number)
                    clients.pop(number).close()


def test_a_request_to_kvmtool_that_comes_with_another_connection_is_taken(tmp_path):
    path = tmp_path / ".lkvm/vm.sock"
    path.parent.mkdir()
    got = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(10)
        peer = threading.Thread(target=serve_as_kvmtool, args=(listener, got))
        peer.start()
        hypervisor("kvmtool").control(path, timeout_s=10).pause()
        assert got == [(4, 0)], "it was taken before we were told so"
        peer.join(10)
        assert not peer.is_alive()


def test_a_request_to_kvmtool_that_was_given_up_counts(tmp_path):
    """What lies in its queue is carried out when it goes on."""
    path = tmp_path / ".lkvm/vm.sock"
    path.parent.mkdir()
    record = path.with_name("balloon")
    record.write_text("0\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(10)
        running = hypervisor("kvmtool").control(path, timeout_s=0.2, mem_mib=512)
        with pytest.raises(DeadlineExceeded, match="it does so when it goes on"):
            running.set_memory(384)
    assert record.read_text() == "128\n"
    with pytest.raises(ApiError, match="nobody listens"):
        running.set_memory(512)
    assert record.read_text() == "128\n", "nothing was sent"


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool"])
def test_the_memory_of_a_machine_that_does_not_run_is_told(kind, tmp_path):
    with pytest.raises(StateError, match=f"vm does not run in {tmp_path}") as failure:
        control.set_balloon(runner(kind, balloon=True), tmp_path, 512)
    assert "start it" in failure.value.hint
