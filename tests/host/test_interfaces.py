"""macvtap interfaces for real, in a network namespace of the test's own."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="interfaces need root"),
]

SETUP = """
import json, os, socket, subprocess, sys
from functools import partial
from pathlib import Path
from microvm.errors import MicroVMError
from microvm.host import files, linux, network
from microvm.launch import taps
from microvm.model.plan import LaunchPlan, MacvtapPlan, Opened, TapPlan

linux.unshare(linux.CLONE_NEWNET)
state = Path(sys.argv[1])
for command in ("link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"):
    subprocess.run([sys.argv[2], *command.split()], check=True)
MAC = "02:00:00:00:00:05"
macvtap = MacvtapPlan(name="mv0.a", link="up0", mode="bridge", mac=MAC)
said = {}

def refusal(function, *arguments):
    try:
        function(*arguments)
    except MicroVMError as error:
        return [type(error).__name__, error.message, error.hint]
"""


@pytest.fixture
def told(tmp_path, tool):
    """Run code in a network namespace and return what it leaves in `said`."""

    def run(code):
        program = SETUP + textwrap.dedent(code) + "print(json.dumps(said))"
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), tool("ip")],
            capture_output=True, timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run


@pytest.mark.usefixtures("new_devices")
def test_frames_reach_the_descriptors_of_a_macvtap(told):
    said = told("""
        plan = LaunchPlan(
            name="vm", hypervisor="h", process_name=None, argv=(), macvtaps=(macvtap,),
            opened=tuple(
                Opened(number=number, kind="macvtap", name="mv0.a", queues=2) for number in (200, 201)
            ),
        )
        taps.up(plan, state)
        record = json.loads((state / taps.RECORD).read_text())
        said["record"] = record["mv0.a"]["index"] == network.index("mv0.a")
        addresses = Path("/proc/net/if_inet6").read_text().splitlines()
        said["ipv6"] = [line for line in addresses if line.endswith(" mv0.a")]
        with taps.opened(plan) as numbers:
            said["numbers"] = numbers
            said["inherited"] = [os.get_inheritable(number) for number in numbers]
            frame = bytes.fromhex(MAC.replace(":", "")) + bytes(6) + b"\\x88\\xb5" + b"hello" * 20
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as other:
                other.bind(("up1", 0))
                other.send(frame)
            import select
            said["got"] = any(
                b"hello" in os.read(number, 2000)
                for number in select.select(numbers, [], [], 5)[0]
            )
        taps.up(plan, state)  # again: it is ours
        taps.down(state)
        said["gone"] = network.index("mv0.a") is None and not (state / taps.RECORD).exists()
    """)
    assert said == {
        "record": True, "ipv6": [], "numbers": [200, 201], "inherited": [True, True],
        "got": True, "gone": True,
    }  # fmt: skip


@pytest.mark.usefixtures("new_devices")
def test_what_is_in_the_way_is_told_and_nothing_is_left(told):
    said = told("""
        from dataclasses import replace
        said["link"] = refusal(network.macvtap_up, replace(macvtap, link="nosuch"), 0)
        network.macvtap_up(replace(macvtap, mode="passthru"), 0)
        said["taken"] = refusal(network.macvtap_up, macvtap, 0)
        said["second"] = refusal(network.macvtap_up, replace(macvtap, name="mv1"), 0)
        said["left"] = network.index("mv1")
    """)
    assert said["link"][:2] == [
        "HostError", "mv0.a can't be on nosuch: there is no such interface",
    ]  # fmt: skip
    assert said["taken"][0] == "StateError"
    assert said["second"][0] == "HostError"
    assert said["second"][2] == "up0 has a macvtap of mode passthru, or can't have one"
    assert said["left"] is None


@pytest.mark.usefixtures("new_devices")
def test_each_script_takes_away_what_is_its_own(told):
    said = told("""
        plan = LaunchPlan(
            name="vm", hypervisor="h", process_name=None, argv=(), macvtaps=(macvtap,),
            taps=(TapPlan(name="tap7", bridge=None, queues=2),),
        )
        taps.up(plan, state)
        taps.down(state, kind="macvtap")
        said["first"] = [network.index("mv0.a") is None, network.index("tap7") is None]
        taps.down(state, kind="tap")
        said["second"] = [network.index("tap7") is None, (state / taps.RECORD).exists()]
    """)
    assert said == {"first": [True, False], "second": [True, False]}


def test_a_tap_that_is_there_is_refused_and_not_joined(told):
    said = told("""
        tap = TapPlan(name="tap7", bridge=None)
        plan = LaunchPlan(name="vm", hypervisor="h", process_name=None, argv=(), taps=(tap,))
        network.tap_up(tap, 0)  # somebody's
        said["foreign"] = refusal(taps.up, plan, state)
        said["joined"] = network.in_use("tap7")
        network.tap_down(tap.name)
        taps.up(plan, state)
        holder = network.open_tap("tap7", 1)  # a VMM that lives on
        said["busy"] = refusal(taps.up, plan, state)
        said["run"] = refusal(taps.held(plan, state).__enter__)
        os.close(holder)
        said["again"] = refusal(taps.up, plan, state)
    """)
    assert said["foreign"][:2] == [
        "StateError", "the interface tap7 exists already and may be in use",
    ]  # fmt: skip
    assert not said["joined"]
    assert said["busy"][:2] == ["StateError", "the tap tap7 is in use by another program"]
    assert said["run"] == said["busy"]
    assert said["again"] is None


def test_a_start_that_fails_takes_away_the_interfaces_that_it_made(told):
    said = told("""
        from dataclasses import replace
        first, second = (TapPlan(name=name, bridge=None) for name in ("tap7", "tap8"))
        third = TapPlan(name="tap9", bridge="nosuch")
        plan = LaunchPlan(
            name="vm", hypervisor="h", process_name=None, argv=(), taps=(first, second, third)
        )
        taps.up(replace(plan, taps=(first,)), state)
        said["why"] = refusal(taps.up, plan, state)
        said["left"] = [network.index(name) is not None for name in ("tap7", "tap8", "tap9")]
        said["record"] = list(json.loads((state / taps.RECORD).read_text()))
    """)
    assert said["why"][1] == "tap9 can't join nosuch: there is no such bridge"
    assert said["left"] == [True, False, False], "the first is of an earlier start"
    assert said["record"] == ["tap7"]


@pytest.mark.usefixtures("new_devices")
def test_what_is_declared_otherwise_by_now_is_made_anew_or_goes(told):
    said = told("""
        from dataclasses import replace

        def run(*command):
            done = subprocess.run([sys.argv[2], *command], check=True, stdout=subprocess.PIPE)
            return done.stdout.decode()

        for bridge in ("br1", "br2"):
            run("link", "add", bridge, "type", "bridge")
        tap = TapPlan(name="tap7", bridge="br1")
        plan = LaunchPlan(
            name="vm", hypervisor="h", process_name=None, argv=(), macvtaps=(macvtap,),
            taps=(tap, TapPlan(name="tap8", bridge=None)),
        )
        taps.up(plan, state)
        kept = network.index("tap8")
        again = replace(
            plan, macvtaps=(), taps=(replace(tap, bridge="br2", queues=2), plan.taps[1])
        )
        said["scripts"] = sorted(taps.up(again, state, kinds=["tap"]))
        said["other kind"] = network.index("mv0.a") is not None
        said["made"] = sorted(taps.up(again, state))
        said["bridge"] = "master br2" in run("link", "show", "tap7")
        os.close(network.open_tap("tap7", 2))
        said["kept"] = network.index("tap8") == kept
        said["gone"] = network.index("mv0.a") is None
        turned = replace(again, taps=(), macvtaps=(replace(macvtap, name="tap7"),))
        said["turned"] = sorted(taps.up(turned, state))
        said["kind"] = "macvtap" in run("-details", "link", "show", "tap7")
        taps.down(state)
        said["left"] = [name for _, name in socket.if_nameindex() if name.startswith(("tap", "mv"))]
    """)
    assert said == {
        "scripts": ["tap7"], "other kind": True, "made": [], "bridge": True, "kept": True,
        "gone": True, "turned": ["tap7"], "kind": True, "left": [],
    }  # fmt: skip


@pytest.mark.usefixtures("new_devices")
def test_a_running_machine_keeps_its_macvtap_whatever_is_declared_by_now(told):
    """Nothing tells that it is open, as it does of taps: the machine's lock does."""
    said = told("""
        from dataclasses import replace
        plan = LaunchPlan(
            name="vm", hypervisor="h", process_name=None, argv=(), macvtaps=(macvtap,),
        )
        taps.up(plan, state)
        index = network.index("mv0.a")
        changed = replace(plan, macvtaps=(replace(macvtap, mode="vepa"),))
        script = partial(taps.up, kinds=["macvtap"], locked=False)
        with files.lock(state / "lock"):
            said["same"] = refusal(script, plan, state)
            said["changed"] = refusal(script, changed, state)
            said["kept"] = network.index("mv0.a") == index
        said["stopped"] = refusal(script, changed, state)
        said["anew"] = network.index("mv0.a") != index
    """)
    assert said["changed"][:2] == [
        "StateError",
        "the machine vm runs, and may use mv0.a, which is declared otherwise by now",
    ]
    assert [said[key] for key in ("same", "kept", "stopped", "anew")] == [None, True, None, True]
