"""What only qemu has, seen from the guest: memory, images, ports, and queues of every interface."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900), pytest.mark.usefixtures("leftovers")]

MACHINE = """[microvms.box]
hotplug_mem = 256
hotplugged_mem = 128
balloon = true
initial_balloon_mem = 64
volumes = [{{ image = "{image}", image_type = "qcow2", auto_create = false, mount_point = "/q" }}]
qemu.pcie_root_ports = [{{ id = "first" }}, {{ id = "second", chassis = 1 }}]
"""
LOOK = """
until grep -q virtio_mem /proc/iomem && test $(awk '/^balloon_inflate/{print $2}' /proc/vmstat) = 16384
do sleep 0.2; done
awk '/System RAM .virtio_mem./{print $1}' /proc/iomem
cat /q/file
ls -d /sys/bus/pci/drivers/pcieport/0* | wc -l
"""


def test_memory_images_and_ports_are_in_the_guest(microvm_cli, tmp_path, tool):
    (tmp_path / "content").mkdir()
    (tmp_path / "content/file").write_text("in qcow2\n")
    raw, image = tmp_path / "raw", tmp_path / "data.qcow2"
    subprocess.run(
        [tool("mkfs.ext4"), "-q", "-d", str(tmp_path / "content"), str(raw), "32M"], check=True
    )
    convert = [tool("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
    subprocess.run(convert, check=True)
    (tmp_path / "microvm.toml").write_text(MACHINE.format(image=image))
    job = ("timeout", "60", "sh", "-c", LOOK)
    ran = microvm_cli("run", "--ephemeral", str(tmp_path), "--", *job, timeout=500)
    assert ran.stdout.split("\n")[1:] == ["in qcow2", "2", ""], ran.stderr
    start, end = (int(word, 16) for word in ran.stdout.split("\n")[0].split("-"))
    assert end + 1 - start == 128 << 20


INTERFACES = """[microvms.box]
vcpu = 2
interfaces = [
  { type = "tap", id = "qtap", mac = "02:00:00:00:00:01" },
  { type = "bridge", id = "qbridge", bridge = "qbr", mac = "02:00:00:00:00:02" },
  { type = "macvtap", id = "qmac", macvtap = { link = "qup" }, mac = "02:00:00:00:00:03" },
]
"""
HOST = """set -e
ip link add qbr type bridge
ip link add qup type veth peer name qother
for link in qbr qup qother; do ip link set $link up; done
ip address add 10.9.0.1/24 dev qbr
ip address add 10.8.0.1/24 dev qother
"$@"
ip -brief link
"""
REACH = """cd /sys/class/net
for address in */address; do
  link=${address%/*}
  case $(cat $address) in
    *:01) echo tap $(ls -d $link/queues/rx-* | wc -l) ;;
    *:02) echo bridge $(ls -d $link/queues/rx-* | wc -l); ip address add 10.9.0.2/24 dev $link ;;
    *:03) echo macvtap $(ls -d $link/queues/rx-* | wc -l); ip address add 10.8.0.2/24 dev $link ;;
  esac
  ip link set $link up
done
for host in 10.9.0.1 10.8.0.1; do
  # Nobody listens there: the host itself has to refuse.
  timeout 20 bash -c "exec 3<>/dev/tcp/$host/9" 2>&1 | grep -o -m1 refused
done
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="interfaces need root")
@pytest.mark.usefixtures("new_devices")
def test_interfaces_of_every_kind_reach_the_host_and_have_a_queue_for_each_cpu(
    microvm_cli, tmp_path, tool
):
    (tmp_path / "microvm.toml").write_text(INTERFACES)
    built = microvm_cli("build", str(tmp_path), timeout=500)
    assert built.returncode == 0, built.stderr
    job = ("run", "--ephemeral", str(tmp_path), "--", "sh", "-c", REACH)
    # In a network of its own: nothing of the host's is touched.
    ran = subprocess.run(
        [tool("unshare"), "-n", "sh", "-c", HOST, "sh", *microvm_cli.command(*job)],
        env=microvm_cli.env, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    said = ran.stdout.split("lo ")[0].splitlines()
    assert sorted(said) == ["bridge 2", "macvtap 2", "refused", "refused", "tap 2"], ran.stderr
    left = {line.split()[0].partition("@")[0] for line in ran.stdout.splitlines()[len(said) :]}
    assert left == {"lo", "qbr", "qup", "qother"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_vmm_becomes_another_user(microvm_cli):
    command = ("run", "--ephemeral", "examples#hello", "--set", "user=nobody", "--", "cat")
    with subprocess.Popen(
        microvm_cli.command(*command), env=microvm_cli.env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"seen\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"seen\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert [Path("/proc", pid).stat().st_uid for pid in children] == [
            pwd.getpwnam("nobody").pw_uid
        ]
    assert process.returncode == 0


# sched_schedstats is a static key: each write patches the kernel's code on every CPU.
PATCHES = """set -e
sh -c 'while :; do :; done' & busy=$!
n=0
while [ $n -lt 400 ]; do
  echo 1 >/proc/sys/kernel/sched_schedstats
  echo 0 >/proc/sys/kernel/sched_schedstats
  n=$((n + 1))
done
kill $busy
nproc
echo alive
"""


def test_a_kernel_of_two_cpus_patches_itself_and_lives(microvm_cli):
    """QEMU before 8.1 ran code of the guest that was no longer there."""
    ran = microvm_cli(
        "run", "--ephemeral", "examples#hello", "--set", "vcpu=2", "--", "sh", "-c", PATCHES,
        timeout=500,
    )  # fmt: skip
    assert ran.stdout.split() == ["2", "alive"], ran.stderr
