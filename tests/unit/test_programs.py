"""Programs of hypervisors are fetched whole and checked, or not at all, and then found."""

import hashlib
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from microvm.errors import HostError, MicroVMError, StateError, UnsupportedOperation
from microvm.host import download
from microvm.launch import doctor, planning
from microvm.model.codec import to_plain
from microvm.model.guest import GuestSystem, Layer
from microvm.model.runner import Runner
from microvm.projects.validation import validate
from microvm.store import Store, item_name
from microvm.store.programs import (
    RELEASES,
    Release,
    find_hypervisors,
    install_hypervisor,
    remove_hypervisor,
)

SCRIPT = b"#!/bin/sh\necho Firecracker v9.8.7\n"
PATHS = "/usr/bin:/bin"


def archive(**members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"release/{name}-x")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


TGZ = archive(firecracker=SCRIPT, jailer=SCRIPT)


def release(data, **members):
    digest = hashlib.sha256(data).hexdigest()
    return Release(version="9.8.7", path="fc/fc.tgz", sha256=digest, members=members)


def table(name="firecracker", data=TGZ, members=("firecracker", "jailer")):
    made = release(data, **{member: f"release/{member}-x" for member in members})
    return {(name, platform.machine()): made}


class Server:
    """Serves one answer to every request: `send(handler)` says which."""

    def __init__(self):
        self.asked = []
        self.over = threading.Event()
        self.begun = threading.Event()
        self.send = lambda handler: whole(handler, TGZ)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                try:
                    server.send(self)
                except OSError:
                    return  # the client went away, as some tests have it do

            def log_message(self, format, *args):
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self._http.shutdown()
            thread.join()
            self._http.server_close()


def head(handler, length):
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def whole(handler, data):
    head(handler, len(data))
    handler.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("PATH", PATHS)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server().running() as running:
        yield running


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def install(store, server, **changes):
    return install_hypervisor(
        "firecracker", store, **{"mirror": server.url, "releases": table(), **changes}
    )


def nothing_is_left(store):
    return not [*store.names(), *(store.path / ".tmp").iterdir(), *store.roots.iterdir()]


def test_a_release_is_fetched_once_and_its_programs_are_found(store, server):
    done = install(store, server)
    assert server.asked == ["/fc/fc.tgz"]
    assert done.fetched
    assert subprocess.check_output([done.program]) == b"Firecracker v9.8.7\n"
    assert (store.path / ".programs/firecracker/bin/jailer").stat().st_mode & 0o777 == 0o755
    assert re.fullmatch(r"[0-9a-f]{32}-firecracker-9\.8\.7", done.item.rpartition("/")[2])
    assert store.verify().problems == ()
    assert not install(store, server).fetched
    assert len(server.asked) == 1
    found = next(f for f in find_hypervisors(store.path) if f.hypervisor == "firecracker")
    assert (found.path, found.version, found.place) == (done.program, "9.8.7", "store")


def test_a_program_that_is_the_whole_release_is_taken_as_it_is(store, server):
    server.send = lambda handler: whole(handler, SCRIPT)
    releases = table("cloud-hypervisor", SCRIPT, ())
    done = install_hypervisor(
        "cloud-hypervisor", store, mirror=f"{server.url}/some/where/", releases=releases
    )
    assert server.asked == ["/some/where/fc/fc.tgz"]
    assert subprocess.check_output([done.program]) == b"Firecracker v9.8.7\n"


def test_the_collector_keeps_it_until_it_is_removed(store, server):
    name = install(store, server).item.rpartition("/")[2]
    assert store.collect(everything=True).items == ()
    assert store.names() == [name]
    remove_hypervisor("firecracker", store)
    assert store.collect().items == (name,)
    with pytest.raises(StateError, match="firecracker is not installed"):
        remove_hypervisor("firecracker", store)
    assert install(store, server).fetched


def test_other_users_can_run_it_whatever_the_umask(store, server):
    before = os.umask(0o077)
    try:
        program = Path(install(store, server).program)
    finally:
        os.umask(before)
    for path in (program, program.parent, program.parents[1], program.parents[2]):
        assert path.stat().st_mode & 0o777 == 0o755


def test_a_later_release_takes_the_place_of_an_earlier_one(store, server):
    old = install(store, server)
    data = archive(firecracker=SCRIPT + b"#", jailer=SCRIPT)
    server.send = lambda handler: whole(handler, data)
    new = install(store, server, releases=table(data=data))
    assert new.program == old.program
    assert store.collect().items == (old.item.rpartition("/")[2],)


def test_path_comes_before_the_store(store, server, tmp_path, monkeypatch):
    install(store, server)
    own = tmp_path / "bin" / "firecracker"
    own.parent.mkdir()
    own.write_bytes(SCRIPT.replace(b"9.8.7", b"1.2.3"))
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{own.parent}:{PATHS}")
    found = next(f for f in find_hypervisors(store.path) if f.hypervisor == "firecracker")
    assert (found.path, found.version, found.place) == (str(own), "1.2.3", "PATH")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_put_there_is_not_run(store, server):
    install(store, server)
    link = store.path / ".programs/firecracker"
    for path in (link.parent, link, link / "bin"):
        for owner, place in ((65534, None), (0, "store")):
            os.chown(path, owner, owner, follow_symlinks=False)
            found = next(f for f in find_hypervisors(store.path) if f.hypervisor == "firecracker")
            assert found.place == place


def runner_of(vm, runner):
    """Write a runner of that declaration."""
    system = GuestSystem(
        name="s", source="debian", description="d", architecture="x86_64", kernel="k",
        kernel_release="1", initrd="k", features=(), kernel_params=("quiet",),
        layers=(Layer(name="base", tree="t", image="i", kind="erofs", uuid="u"),),
    )  # fmt: skip
    file = runner / planning.RUNNER_FILE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(to_plain(Runner(schema=1, name="vm", microvm=vm, system=system))))


def test_a_declared_path_of_a_program_starts_at_the_project(store, tmp_path, monkeypatch):
    """The VMM is started in the state directory, by whoever stands anywhere."""
    runner = store.path / "runner"
    vm, _ = validate({"hypervisor": "firecracker", "firecracker": {"program": "bin/fc"}}, "vm")
    runner_of(vm, runner)
    program = tmp_path / "project/bin/fc"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho Firecracker v1.16.1\n")
    program.chmod(0o755)
    monkeypatch.chdir("/")
    start = planning.Start(
        runner_dir=runner, state_dir=tmp_path / "state", project_dir=tmp_path / "project", dry=True
    )
    known = planning.gather(planning.load_runner(runner), start)
    assert known.programs["firecracker"].path == str(program)


def test_a_program_that_is_too_old_is_refused_before_a_build(store, tmp_path):
    program = tmp_path / "fc"
    program.write_text("#!/bin/sh\necho Firecracker v1.7.0\n")
    program.chmod(0o755)
    vm, _ = validate({"hypervisor": "firecracker", "firecracker": {"program": "./fc"}}, "vm")
    [problem] = planning.obstacles(vm, store_dir=store.path, project_dir=tmp_path, dry=True)
    assert problem.message == "it needs firecracker 1.8, this is 1.7.0"


def test_a_user_that_the_host_does_not_have_is_told_before_a_build(store, tmp_path):
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho QEMU emulator version 10.0.0\n")
    program.chmod(0o755)
    vm, _ = validate({"user": "no-such-user", "qemu": {"program": str(program)}}, "vm")
    found = planning.obstacles(vm, store_dir=store.path, project_dir=tmp_path, dry=True)
    [problem] = [each for each in found if "no such user" in each.message]
    assert problem.where == "user"
    assert "useradd --system no-such-user" in problem.hint


def test_directories_that_can_not_be_shared_are_told_at_once(store, tmp_path):
    (tmp_path / "file").touch()
    shares = [
        {"tag": tag, "source": tag, "mount_point": f"/srv/{tag}", "proto": "9p"}
        for tag in ("none", "file", "here")
    ]
    (tmp_path / "here").mkdir()
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho QEMU emulator version 10.0.0\n")
    program.chmod(0o755)
    vm, _ = validate({"shares": shares, "qemu": {"program": "./qemu"}}, "vm")
    found = planning.obstacles(vm, store_dir=store.path, project_dir=tmp_path, dry=True)
    assert [(each.where, each.message) for each in found] == [
        ("shares.0.source", f"there is no {tmp_path}/none"),
        ("shares.1.source", f"{tmp_path}/file is not a directory"),
    ]


def test_a_place_where_no_socket_can_be_is_told_at_its_key(store, tmp_path):
    (tmp_path / "file").write_text("mine")
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho QEMU emulator version 10.0.0\n")
    program.chmod(0o755)
    told = {}
    for socket in (
        f"{tmp_path}/no/vm.sock",
        f"{tmp_path}/file",
        f"{tmp_path}/vm.sock",
        "a/vm.sock",
    ):
        vm, _ = validate({"socket": socket, "qemu": {"program": "./qemu"}}, "vm")
        found = planning.obstacles(vm, store_dir=store.path, project_dir=tmp_path, dry=True)
        told |= {(each.where, socket): each.message for each in found}
    assert told == {
        ("socket", f"{tmp_path}/no/vm.sock"):
            f"no socket can be at {tmp_path}/no/vm.sock: there is no {tmp_path}/no",
        ("socket", f"{tmp_path}/file"):
            f"no socket can be at {tmp_path}/file: something else is there",
    }  # fmt: skip


def test_the_root_of_sandboxes_is_looked_for_in_the_project(store, tmp_path):
    (tmp_path / "empty").mkdir()
    program = tmp_path / "crosvm"
    program.write_text("#!/bin/sh\necho crosvm 0.1.0\n")
    program.chmod(0o755)
    told = []
    for root in ("empty", "nothing"):
        options = {"pivot_root": root, "program": "./crosvm"}
        vm, _ = validate({"hypervisor": "crosvm", "crosvm": options}, "vm")
        told += planning.obstacles(vm, store_dir=store.path, project_dir=tmp_path, dry=True)
    assert [(each.where, each.message) for each in told] == [
        ("crosvm.pivot_root", f"there is no {tmp_path}/nothing")
    ]


def test_a_launch_and_the_doctor_look_into_the_store(store, server, tmp_path):
    runner = store.path / "runner"
    vm, _ = validate({"hypervisor": "firecracker"}, "vm")
    runner_of(vm, runner)

    def gathered():
        try:
            start = planning.Start(
                runner_dir=runner, state_dir=tmp_path, project_dir=tmp_path, dry=True
            )
            known = planning.gather(planning.load_runner(runner), start)
        except HostError as error:
            return f"{error} {error.hint}"
        return known.programs["firecracker"].path

    def told():
        return next(f for f in doctor.examine(store.path) if f.topic == "firecracker")

    assert re.search("is missing.*microvm hypervisors install firecracker", gathered())
    assert (told().state, told().mend) == ("lacking", "microvm hypervisors install firecracker")
    program = install(store, server).program
    # Without KVM there is no plan, but then it is KVM alone that is missed.
    assert gathered() == program or "needs hardware virtualisation" in gathered()
    assert told().text.startswith(f"9.8.7 at {program} (in the store)")


def to(handler, place):
    handler.send_response(302)
    handler.send_header("Location", place)
    handler.end_headers()


def cut(handler):
    head(handler, len(TGZ))
    handler.wfile.write(TGZ[: len(TGZ) // 2])


FAULTS = {
    "404 Not Found": lambda handler: handler.send_error(404),
    "503 ": lambda handler: handler.send_error(503),
    r"ended after \d+ of \d+ bytes": cut,
    "SHA-256 is [0-9a-f]{64}, not": lambda handler: whole(handler, TGZ[:-1] + b"?"),
    "without response": lambda handler: handler.connection.close(),
    "no web server, it says SSH-2.0-x$": lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n"),
    "infinite loop.*Found$": lambda handler: to(handler, handler.path),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_server_that_fails_leaves_nothing_and_the_next_run_works(said, store, server):
    works, server.send = server.send, FAULTS[said]
    with pytest.raises(MicroVMError, match=said) as failure:
        install(store, server)
    assert f"{server.url}/fc/fc.tgz" in failure.value.message
    assert "--mirror" in failure.value.hint
    assert nothing_is_left(store)
    server.send = works
    assert install(store, server).fetched


def test_an_archive_without_the_programs_is_told(store, server):
    data = archive(firecracker=SCRIPT)
    server.send = lambda handler: whole(handler, data)
    with pytest.raises(MicroVMError, match=r"not laid out as its release should be.*jailer"):
        install(store, server, releases=table(data=data))
    assert nothing_is_left(store)


def test_a_server_that_can_not_be_reached_is_told(store, server, free_port):
    with pytest.raises(HostError, match="Connection refused"):
        install(store, server, mirror=f"http://127.0.0.1:{free_port}")
    with pytest.raises(HostError, match=r"could not download http://nosuch\.invalid/"):
        install(store, server, mirror="http://nosuch.invalid")
    assert nothing_is_left(store)


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://h/x", "/srv", "https://", ""])
def test_a_mirror_is_a_web_server(mirror, store, server):
    with pytest.raises(MicroVMError, match="no address of a web server"):
        install(store, server, mirror=mirror)


def test_a_redirection_leads_to_web_servers_only(store, server):
    server.send = lambda handler: to(handler, "file:///etc/passwd")
    with pytest.raises(MicroVMError, match="could not download"):
        install(store, server)
    assert nothing_is_left(store)


def test_redirections_are_followed(store, server):
    def once(handler):
        if handler.path != "/other":
            to(handler, f"{server.url}/other")
        else:
            whole(handler, TGZ)

    server.send = once
    assert install(store, server).fetched


def test_a_server_that_sends_no_more_is_given_up(tmp_path, server):
    def stall(handler):
        head(handler, 1000)
        handler.wfile.write(b"x" * 10)
        handler.wfile.flush()
        server.over.wait()

    server.send = stall
    with pytest.raises(MicroVMError, match=r"nothing came for 0\.2 s"):
        download.download(f"{server.url}/x", tmp_path / "x", "0" * 64, stall_s=0.2)
    server.send = lambda handler: server.over.wait()
    with pytest.raises(MicroVMError, match=r"nothing came for 0\.2 s"):
        download.download(f"{server.url}/x", tmp_path / "x", "0" * 64, stall_s=0.2)


def test_a_full_disk_is_told_and_leaves_nothing(store, server):
    code = f"""
import resource, signal, sys
from microvm.errors import MicroVMError
from microvm.store import Store, item_name
from microvm.store.programs import Release, install_hypervisor
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
release = Release(version="1", path="big", sha256="0" * 64)
try:
    install_hypervisor("firecracker", Store.open(Path({str(store.path)!r})), mirror={server.url!r},
                       releases={{("firecracker", {platform.machine()!r}): release}})
except MicroVMError as error:
    print(error)
"""
    server.send = lambda handler: whole(handler, bytes(1 << 20))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert re.search(
        rb"could not add [0-9a-f]+-firecracker-1 to the store: File too large", said.stdout
    )
    assert nothing_is_left(store)


def test_where_there_is_no_release_it_is_told_what_to_do(store):
    for name, said in (("qemu", "apt install"), ("crosvm", "cargo build"), ("kvmtool", "make -C")):
        with pytest.raises(UnsupportedOperation) as failure:
            install_hypervisor(name, store)
        assert said in failure.value.hint
    with pytest.raises(UnsupportedOperation, match=platform.machine()):
        install_hypervisor("firecracker", store, releases={})
    with pytest.raises(MicroVMError, match="no hypervisor 'xen'"):
        install_hypervisor("xen", store)


def test_known_releases_have_whole_checksums_and_no_two_the_same():
    assert {name for name, _ in RELEASES} == {"cloud-hypervisor", "firecracker"}
    digests = [release.sha256 for release in RELEASES.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)


def test_the_handbook_names_the_versions_that_are_installed():
    handbook = Path(__file__).parents[2] / "docs/how-to/hypervisor.md"
    for (name, _), known in RELEASES.items():
        assert re.search(rf"install {name} +# {re.escape(known.version)}: ", handbook.read_text())


@pytest.fixture
def cli(microvm_cli, store, server):
    def run(*words, **more):
        extra = {"MICROVM_STORE": str(store.path), "PATH": PATHS}
        return microvm_cli(*words, extra=extra, **more)

    return run


@pytest.mark.skipif(
    ("firecracker", platform.machine()) not in RELEASES, reason="no release for this machine"
)
def test_the_command_checks_against_the_known_checksum_and_says_one_message(cli, store, server):
    ran = cli("hypervisors", "install", "firecracker", "--mirror", server.url)
    known = RELEASES["firecracker", platform.machine()]
    assert ran.returncode == 1
    assert server.asked == [f"/{known.path}"]
    assert known.sha256 in ran.stderr
    assert "Traceback" not in ran.stderr
    assert nothing_is_left(store)


def test_the_command_takes_what_is_installed_and_removes_it(cli, store, server):
    install(store, server)
    shown = json.loads(cli("hypervisors", "--json").stdout)["programs"]
    assert {p["hypervisor"]: p["place"] for p in shown}["firecracker"] == "store"
    assert "9.8.7, " in cli("hypervisors").stdout
    assert "-firecracker-9.8.7" in cli("store", "list").stdout
    assert "microvm store gc" in cli("hypervisors", "remove", "firecracker").stdout
    assert cli("hypervisors", "remove", "firecracker").returncode == 5


@pytest.mark.skipif(
    ("firecracker", platform.machine()) not in RELEASES, reason="no release for this machine"
)
def test_the_command_downloads_nothing_that_is_there(cli, store, server):
    known = RELEASES["firecracker", platform.machine()]

    def make(directory):
        program = directory / "bin" / "firecracker"
        program.parent.mkdir()
        program.write_bytes(SCRIPT)
        program.chmod(0o755)

    store.add(item_name(f"firecracker-{known.version}", [known.path, known.sha256]), make)
    command = ("hypervisors", "install", "firecracker", "--mirror", server.url)
    place = f"{store.path}/.programs/firecracker/bin/firecracker"
    assert cli(*command).stdout == f"already there: firecracker {known.version}: {place}\n"
    assert json.loads(cli(*command, "--json").stdout)["program"] == place
    assert server.asked == []


def test_the_command_says_what_to_do_where_there_is_no_release(cli):
    ran = cli("hypervisors", "install", "kvmtool")
    assert ran.returncode == 1
    assert "git clone" in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_download_leaves_no_item(number, store, server, microvm_cli, monkeypatch):
    def stall(handler):
        head(handler, 1 << 20)
        handler.wfile.write(b"x" * 1000)
        handler.wfile.flush()
        server.begun.set()
        server.over.wait()

    if ("firecracker", platform.machine()) not in RELEASES:
        pytest.skip("no release for this machine")
    works, server.send = server.send, stall
    process = microvm_cli.start(
        "--store", str(store.path), "hypervisors", "install", "firecracker", "--mirror", server.url
    )
    assert server.begun.wait(20)
    process.send_signal(number)
    said = process.communicate(timeout=20)[0]
    assert b"Traceback" not in said
    assert process.returncode not in (0, 1)
    assert store.names() == []
    server.send = works
    assert install(store, server).fetched
    assert list((store.path / ".tmp").iterdir()) == []
