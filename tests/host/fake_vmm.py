"""A program that stands for a VMM: it speaks as much of its kind's control socket as a launcher
needs, and does what a test says otherwise.
"""

import sys
from dataclasses import replace
from pathlib import Path

from microvm.hypervisors import hypervisor
from microvm.model.declaration import MicroVM
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.guest import GuestSystem, Layer
from microvm.model.runner import Runner

KINDS = ("qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool")
VERSIONS = {
    "qemu": (10, 0), "cloud-hypervisor": (53, 0), "firecracker": (1, 16), "crosvm": (),
    "kvmtool": (3, 18),
}  # fmt: skip

PROGRAM = """#!{python}
import json, os, signal, socket, sys, threading, time
from pathlib import Path
KIND, SOCKET = {kind!r}, {socket!r}
UP, OFF = "\\x1b]6977;up\\x07", "\\x1b]6977;ending;poweroff\\x07"
if KIND == "crosvm" and "run" not in sys.argv:
    sys.exit(0)  # a request to the one that runs: taken

def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def listener():
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if KIND == "crosvm"
                           else socket.SOCK_STREAM)
    server.bind(SOCKET)
    server.listen(8)
    return server

def answer(connection):
    with connection:
        if KIND == "qemu":
            connection.sendall(b'{{"QMP": {{}}}}\\n')
            for line in connection.makefile("rb"):
                reply = {{"return": {{}}, "id": json.loads(line).get("id")}}
                connection.sendall(json.dumps(reply).encode() + b"\\n")
        elif KIND in ("cloud-hypervisor", "firecracker"):
            if connection.recv(65536):
                connection.sendall(b"HTTP/1.1 204 \\r\\n\\r\\n")
        else:
            connection.recv(65536)

def serve():
    "Take every request and do nothing about it."
    server = listener()
    def loop():
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()

{code}
"""


def plan(kind: str, directory: Path, code: str, *, known: dict | None = None, **fields):
    """Return the back end's plan for a guest whose VMM does this."""
    backend = hypervisor(kind)
    program = directory / f"fake-{kind}"
    known = dict(known or {})
    programs = {
        backend.program: Program(path=str(program), version=VERSIONS[kind]),
        **known.pop("programs", {}),
    }
    state = directory / "state"
    facts = Facts(**{
        "accelerator": Accelerator(kind="kvm", reason="a test says so"), "programs": programs,
        "state_dir": str(state), "project_dir": str(directory), "store_dir": "/store",
        "machine_id": "1" * 32, "watched": True, **known,
    })  # fmt: skip
    one = runner(kind, **fields)
    assert backend.check(one.microvm, facts) == []
    made = backend.plan(one, facts)
    text = PROGRAM.format(python=sys.executable, kind=kind, socket=made.watch, code=code)
    program.write_text(text)
    program.chmod(0o755)
    return replace(made, process_name=None)  # a script's own name says which file it is


def runner(kind: str, **fields) -> Runner:
    """Return a runner of a guest that is nowhere."""
    system = GuestSystem(
        name="s", source="debian", description="", architecture="x86_64", kernel="k",
        kernel_release="6", initrd="i", features=(), kernel_params=(),
        layers=(Layer(name="base", tree="t", image="e", kind="erofs", uuid="u"),),
    )  # fmt: skip
    microvm = MicroVM(hypervisor=kind, **fields)
    return Runner(schema=1, name="vm", microvm=microvm, system=system, vmlinux="v", disk="d")
