"""What a guest's configuration layer holds beside its declaration."""

import subprocess

import pytest

from microvm.guests.debian import runtime
from microvm.model.declaration import MicroVM
from microvm.model.devices import Device, Endpoint, ForwardPort, Interface, Share, Volume
from microvm.model.identity import volume_uuid
from microvm.model.system import DebianSystem, User

READ_A_LINE = """
while read -r kind path; do printf '%b' "$path"; done
"""


def contents(microvm: MicroVM = MicroVM(), installed: tuple[str, ...] = ()) -> runtime.Contents:  # noqa: B008
    return runtime.contents(
        "box", microvm, installed=frozenset(installed), description="Debian 13 (trixie)"
    )


def mounts(microvm: MicroVM) -> list[str]:
    return contents(microvm).files["/etc/microvm/mounts"][0].decode().splitlines()


def masked(found: runtime.Contents) -> set[str]:
    return {path.rsplit("/", 1)[-1] for path, to in found.links.items() if to == "/dev/null"}


def test_a_guest_without_network_gets_no_network_programs():
    assert runtime.packages_for(MicroVM()) == ()
    assert "systemd-networkd.service" in masked(contents())


def test_a_guest_with_a_network_configures_it_by_dhcp():
    microvm = MicroVM(interfaces=(Interface(type="user", id="net0"),))
    found = contents(microvm)
    assert {"iproute2", "systemd-resolved"} <= set(runtime.packages_for(microvm))
    assert b"DHCP=yes" in found.files["/etc/systemd/network/80-microvm.network"][0]
    assert "systemd-networkd.service" not in masked(found)


def test_options_bring_the_packages_that_they_need():
    users = {"ann": User(sudo=True, ssh_authorized_keys=("ssh-ed25519 AAAA",))}
    system = DebianSystem(users=users, locale="de_DE.UTF-8", timezone="Europe/Berlin")
    wanted = runtime.packages_for(MicroVM(system=system))
    assert {"sudo", "openssh-server", "locales", "tzdata"} <= set(wanted)


def test_volumes_are_mounted_by_the_uuid_that_they_will_be_made_with():
    microvm = MicroVM(
        volumes=(
            Volume(image="root.img", size=64, mount_point="/"),
            Volume(image="data.img", size=64, mount_point="/srv/a b"),
        )
    )
    uuid = volume_uuid("box", "data.img")
    assert mounts(microvm) == [f"volume 1 {uuid} /srv/a\\0040b ext4 rw"]


def test_a_mount_inside_another_comes_after_it():
    microvm = MicroVM(
        volumes=(Volume(image="deep.img", size=64, mount_point="/srv/data/deep"),),
        shares=(Share(tag="work", source="/tmp", mount_point="/srv"),),
    )
    assert [line.split()[0] for line in mounts(microvm)] == ["share", "volume"]


def test_escaped_paths_come_back_as_the_initrd_reads_them():
    for path in ("/plain", "/two words", "/tab\there", "/back\\slash", "/ünï", "/a%sb", "/star*"):
        line = f"share {runtime.escape(path)}\n".encode()
        done = subprocess.run(
            ["sh", "-c", READ_A_LINE], input=line, capture_output=True, check=True
        )
        assert done.stdout.decode() == path


def test_the_console_has_one_login_and_it_is_ours():
    found = contents()
    assert "serial-getty@ttyS0.service" in masked(found)
    assert "systemd-getty-generator" in masked(found)
    assert "/etc/systemd/system/microvm-console.service" in found.files


def test_every_started_unit_is_there():
    found = contents(installed=("openssh-server",))
    for path, target in found.links.items():
        if ".wants/microvm-" in path:
            assert f"/etc/systemd/system/{target.removeprefix('../')}" in found.files


def test_units_after_the_greeting_are_ordered_and_not_masked():
    found = contents(MicroVM(interfaces=(Interface(type="user", id="net0"),)))
    for unit in runtime._AFTER_GREETING:
        text = found.files[f"/etc/systemd/system/{unit}.d/microvm.conf"][0]
        assert text.startswith(b"[Unit]\nAfter=microvm-greeting.service\n")
        assert unit not in masked(found)


def test_a_job_waits_for_the_drivers_of_devices_of_the_host():
    dropin = "/etc/systemd/system/microvm-job.service.d/devices.conf"
    found = contents(MicroVM(devices=(Device(bus="pci", path="0000:03:00.0"),)))
    assert b"udevadm settle" in found.files[dropin][0]
    assert dropin not in contents().files


def test_host_keys_are_made_at_the_first_start_and_never_built_in():
    found = contents(installed=("openssh-server",))
    assert not any("ssh_host" in path for path in found.files)
    assert b"/var/lib/microvm/ssh/" in found.files["/etc/ssh/sshd_config.d/microvm.conf"][0]
    assert "/etc/systemd/system/microvm-ssh-keys.service" in found.files


def test_tmp_is_a_file_system_of_its_own_only_where_the_root_is_kept():
    kept = MicroVM(volumes=(Volume(image="root.img", size=64, mount_point="/"),))
    assert "tmp.mount" in masked(contents())
    assert "tmp.mount" not in masked(contents(kept))


@pytest.mark.parametrize("installed", [(), ("dbus",)])
def test_poweroff_needs_no_session_manager_nor_waits_for_one(installed):
    script, mode = contents(installed=installed).files["/usr/local/sbin/poweroff"]
    assert mode == 0o755
    assert b"-S /run/dbus/system_bus_socket" in script  # one that is there is asked


def test_no_two_entries_have_one_path():
    found = contents(MicroVM(interfaces=(Interface(type="user", id="net0"),)), ("openssh-server",))
    assert not set(found.files) & set(found.links)


def opened(*ends: tuple[str, int, str, int]) -> runtime.Contents:
    """Contents of a guest with ports of the host: host address and port, guest's the same."""
    declared = tuple(
        ForwardPort(
            origin="guest",
            host=Endpoint(address=host, port=at),
            guest=Endpoint(address=guest, port=port),
        )
        for host, at, guest, port in ends
    )
    network = (Interface(type="user", id="net0"),)
    return contents(MicroVM(interfaces=network, forward_ports=declared))


def test_a_port_of_the_host_is_opened_in_the_guest_by_systemd():
    found = opened(("", 5432, "", 15432))
    socket = found.files["/etc/systemd/system/microvm-forward-0.socket"][0].decode()
    service = found.files["/etc/systemd/system/microvm-forward-0.service"][0].decode()
    assert "ListenStream=127.0.0.1:15432\n" in socket
    assert "Before=microvm-job.service" in socket
    assert "systemd-socket-proxyd 10.0.2.2:5432\n" in service
    wanted = "/etc/systemd/system/sysinit.target.wants/microvm-forward-0.socket"
    assert found.links[wanted] == "../microvm-forward-0.socket"
    assert "/etc/systemd/network/80-microvm-lo.network" not in found.files


def test_an_address_that_the_guest_lacks_is_given_to_its_loopback():
    found = opened(
        ("::1", 1, "fd00::9", 80), ("", 2, "192.0.2.1", 80), ("", 3, "192.0.2.1", 81),
        ("", 4, "10.0.2.15", 82),
    )  # fmt: skip
    network = found.files["/etc/systemd/network/80-microvm-lo.network"][0].decode()
    assert network.splitlines()[-2:] == ["Address=fd00::9/128", "Address=192.0.2.1/32"]
    socket = found.files["/etc/systemd/system/microvm-forward-0.socket"][0].decode()
    service = found.files["/etc/systemd/system/microvm-forward-0.service"][0].decode()
    assert "ListenStream=[fd00::9]:80\n" in socket
    assert "systemd-socket-proxyd fec0::2:1\n" in service


def test_a_job_waits_for_ipv6_only_where_the_host_is_reached_by_it():
    """DHCP answers seconds before a router's advertisement does: a job found no way to ::1."""
    wait = "/etc/systemd/system/microvm-online.service.d/ipv6.conf"
    assert wait not in opened(("", 53, "", 53)).files
    proxied, direct = opened(("::1", 53, "", 53)), opened(("::1", 53, "fec0::2", 53))
    assert b"--ipv6" in proxied.files[wait][0]
    assert b"--ipv6" in direct.files[wait][0]


def test_what_user_networking_does_by_itself_changes_nothing_in_the_guest():
    direct = opened(("", 53, "10.0.2.2", 53), ("192.0.2.1", 80, "192.0.2.1", 80))
    assert direct == contents(MicroVM(interfaces=(Interface(type="user", id="net0"),)))
