"""Ports that can't be opened are told before anything starts."""

import os
import socket

import pytest

from microvm.errors import HostError, StateError
from microvm.host import ports
from microvm.model.plan import PortPlan

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("proto", "address", "kind"),
    [
        ("tcp", "127.0.0.1", socket.SOCK_STREAM),
        ("tcp", "::1", socket.SOCK_STREAM),
        ("udp", "127.0.0.1", socket.SOCK_DGRAM),
    ],
)
def test_a_port_in_use_is_told_with_what_to_do(proto, address, kind):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as taken:
        try:
            taken.bind((address, 0))
        except OSError as error:
            pytest.skip(f"no {address} here: {error}")
        if proto == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        plan = PortPlan(where="forward_ports.1", proto=proto, address=address, port=port)
        with pytest.raises(StateError, match="in use") as raised:
            ports.check_free([plan])
        assert str(port) in raised.value.message
        assert "--set forward_ports.1.host.port=" in raised.value.hint
    ports.check_free([plan])


def test_a_port_whose_connections_linger_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()  # this end waits for stray packets now (TIME_WAIT)
    ports.check_free(
        [PortPlan(where="forward_ports.0", proto="tcp", address="127.0.0.1", port=port)]
    )


def test_an_address_of_another_host_is_told():
    plan = PortPlan(where="forward_ports.0", proto="tcp", address="192.0.2.1", port=8080)
    with pytest.raises(HostError, match=r"192\.0\.2\.1:8080/tcp"):
        ports.check_free([plan])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every port")
def test_a_port_of_roots_is_told():
    plan = PortPlan(where="forward_ports.0", proto="tcp", address="127.0.0.1", port=79)
    with pytest.raises(HostError, match="below 1024"):
        ports.check_free([plan])
