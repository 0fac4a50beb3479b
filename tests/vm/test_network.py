"""User networking, seen from the guest: it reaches the host where the declaration says."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200), pytest.mark.usefixtures("leftovers")]

NETWORK = '[microvms.box]\ninterfaces = [{ type = "user", id = "net0" }]\n'
ASK = "exec 3<>/dev/tcp/$0/$1 && echo hello >&3 && cat <&3"


@contextmanager
def served(address: str, word: str) -> Iterator[int]:
    """Answer each line with a word and the line; yield the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, client.makefile("rw") as file:
                    file.write(f"{word} {file.readline()}")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def declared(host: str, port: int, guest: str, at: int) -> str:
    return (
        f'{{ origin = "guest", host = {{ address = "{host}", port = {port} }},'
        f' guest = {{ address = "{guest}", port = {at} }} }}'
    )


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_ports_of_the_host_are_where_the_guest_is_told(microvm_cli, tmp_path, release):
    with ExitStack() as stack:
        four = stack.enter_context(served("127.0.0.1", "four"))
        ports = [declared("", four, "", 80), declared("", four, "10.0.2.100", 81)]
        entrances = ["127.0.0.1 80", "10.0.2.100 81", f"10.0.2.2 {four}"]
        answers = "four hello\n" * 3
        if has_ipv6():
            six = stack.enter_context(served("::1", "six"))
            ports.append(declared("::1", six, "fd00::9", 82))
            entrances.append("fd00::9 82")
            answers += "six hello\n"
        text = f'{NETWORK}forward_ports = [{", ".join(ports)}]\nsystem.release = "{release}"\n'
        (tmp_path / "microvm.toml").write_text(text)
        script = "; ".join(f"bash -c '{ASK}' {entrance}" for entrance in entrances)
        ran = microvm_cli(
            "run", "--ephemeral", str(tmp_path), "--", "sh", "-c", script, timeout=500
        )
    assert ran.stdout == answers, ran.stderr
