"""What is found out about the host, with small programs that behave as the real ones may."""

import json
from pathlib import Path

import pytest

from microvm.errors import HostError
from microvm.host import facts, kvm, process
from microvm.host.kvm import Trials, Verdict
from microvm.model.facts import Program

WORKS = "echo 'Linux version 6.12'"
FAILS = "echo 'ioctl(KVM_CREATE_VM) failed: 16' >&2; exit 1"
HANGS = "exec sleep 600"
BUSY_ONCE = f'[ "$(wc -l <"$0.calls")" -gt 1 ] || {HANGS}; {WORKS}'


@pytest.fixture
def qemu(tmp_path):
    """Make a program that does `script` for QEMU and counts how often it is called."""

    def make(script, name="qemu"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho >>"$0.calls"\n{script}\n')
        path.chmod(0o755)
        return Program(path=str(path), version=(10, 0))

    return make


def calls(program):
    with Path(f"{program.path}.calls").open() as file:
        return len(file.readlines())


@pytest.fixture
def trials(tmp_path):
    return Trials(tmp_path / "cache/kvm.json", "this-boot")


KERNEL = Path("/store/kernel/vmlinuz")


def verdict(trials, program, kernel=KERNEL):
    return trials.known(program, kernel) or trials.verdict(program, kernel, (20.0, 20.0))


def test_a_kernel_that_runs_is_remembered_for_all_kernels(trials, qemu):
    program = qemu(WORKS)
    assert trials.known(program, KERNEL) is None
    assert verdict(trials, program) == verdict(trials, program, Path("/other")) == Verdict(None)
    assert calls(program) == 1


def test_a_kernel_that_does_not_run_speaks_for_itself_alone(trials, qemu):
    program = qemu(f'case "$*" in *own*) {FAILS};; esac; {WORKS}')
    own = Path("/store/own/vmlinuz")
    assert "KVM_CREATE_VM" in verdict(trials, program, own).obstacle
    assert verdict(trials, program, own).obstacle
    assert calls(program) == 1
    assert verdict(trials, program) == Verdict(None)


def test_a_trial_that_met_a_busy_host_is_repeated_before_anything_is_remembered(trials, qemu):
    program = qemu(BUSY_ONCE)
    assert trials.verdict(program, KERNEL, (2.0, 20.0)) == Verdict(None)
    assert calls(program) == 2
    assert trials.known(program, KERNEL) == Verdict(None)


def test_a_kernel_that_never_boots_is_tried_twice_and_then_no_more(trials, qemu):
    program = qemu(HANGS)
    found = trials.verdict(program, KERNEL, (1.9, 2.0))
    assert "it says nothing for 2 s" in found.obstacle
    assert calls(program) == 2
    assert trials.known(program, KERNEL) == found


def test_a_slow_host_has_the_time_that_its_kernel_speaks(trials, qemu):
    program = qemu(f"for n in 1 2 3 4; do echo $n; sleep 0.6; done; {WORKS}")
    assert trials.verdict(program, KERNEL, (1.5,)) == Verdict(None)


def test_a_kernel_that_speaks_without_end_does_not_boot(trials, qemu):
    program = qemu("while :; do echo oops; sleep 0.1; done")
    assert "no boot within 2.4 s" in trials.verdict(program, KERNEL, (0.4,)).obstacle


def test_a_qemu_that_can_not_be_started_says_nothing_about_kvm(trials, tmp_path):
    program = Program(path=str(tmp_path / "nosuch"), version=(10, 0))
    assert "No such file" in trials.verdict(program, KERNEL).obstacle
    assert trials.known(program, KERNEL) is None


def test_a_verdict_ends_with_the_boot_of_the_host(trials, qemu):
    program = qemu(FAILS)
    verdict(trials, program)
    after = Trials(trials.record, "next-boot")
    assert after.known(program, KERNEL) is None
    program = qemu(WORKS)
    assert verdict(after, program) == Verdict(None)
    assert json.loads(trials.record.read_text())["boot"] == "next-boot"
    assert trials.known(program, KERNEL) is None


def test_another_qemu_is_tried_for_itself_and_both_are_remembered(trials, qemu):
    old, new = qemu(FAILS, "old"), qemu(WORKS, "new")
    for _ in range(2):
        assert verdict(trials, old).obstacle
        assert verdict(trials, new) == Verdict(None)
    assert (calls(old), calls(new)) == (1, 1)
    newer = Program(path=new.path, version=(10, 1))
    assert trials.known(newer, KERNEL) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"boot": "this-boot"}', '{"boot": "this-boot", "verdicts": [1]}'],
)
def test_a_broken_record_is_none(text, trials, qemu):
    trials.record.parent.mkdir()
    trials.record.write_text(text)
    assert trials.known(qemu(WORKS), KERNEL) is None
    assert verdict(trials, qemu(WORKS)) == Verdict(None)


def test_a_record_that_can_not_be_written_costs_a_trial_and_no_more(tmp_path, qemu):
    (tmp_path / "cache").write_text("in the way")
    trials = Trials(tmp_path / "cache/kvm.json", "this-boot")
    assert verdict(trials, qemu(WORKS)) == Verdict(None)


def test_a_trial_fits_the_kind_of_host():
    arm = " ".join(kvm.trial_command("qemu", KERNEL, "aarch64"))
    intel = " ".join(kvm.trial_command("qemu", KERNEL, "x86_64"))
    assert "-machine virt" in arm
    assert "console=ttyAMA0" in arm
    assert "reboot=t" not in arm
    assert "-machine q35" in intel
    assert "console=ttyS0" in intel
    assert kvm.trial_command("qemu", KERNEL, "riscv64") is None


def test_the_time_in_a_log_of_crosvm_is_no_version(tmp_path):
    path = tmp_path / "crosvm"
    path.write_text("#!/bin/sh\necho '[2026-11-25T13:38:49.439955726+00:00 ERROR] syslog' >&2\n")
    path.chmod(0o755)
    assert facts.program("crosvm", str(path), dry=True).version == ()


def test_emulation_on_demand_tries_nothing():
    never = Program(path="/nosuch", version=(1,))
    assert kvm.accelerator(never, KERNEL, "tcg").kind == "tcg"


def test_a_dry_look_tries_and_writes_nothing(tmp_path, qemu):
    program = qemu(WORKS)
    assert kvm.accelerator(program, KERNEL, None, dry=True).reason
    assert not (tmp_path / "qemu.calls").exists()
    state = tmp_path / "state"
    assert facts.host_id(state, dry=True)
    assert not state.exists()


VIRTIOFSD_C = "echo 'virtiofsd version 7.2.22 (Debian)'; echo 'using FUSE kernel interface 7.36'"


@pytest.mark.parametrize(
    ("script", "version", "flavour"),
    [
        ("echo virtiofsd 1.13.2", (1, 13, 2), "rust"),
        (VIRTIOFSD_C, (7, 2, 22), "c"),
        ("echo 'setgroups() failed with error=1:Operation not permitted' >&2; exit 1", (), "c"),
    ],
)
def test_virtiofsd_is_told_by_its_words_not_by_its_file(script, version, flavour, qemu):
    path = qemu(script, "serve-files").path
    found = facts.program("virtiofsd", path, dry=True)
    assert (found.version, found.flavour) == (version, flavour)


def test_a_missing_program_that_debian_lacks_is_not_said_to_be_a_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nosuch")
    with pytest.raises(HostError, match="the program firecracker is missing") as failure:
        facts.program("firecracker", dry=True)
    assert "apt install" not in failure.value.hint


def test_a_missing_program_is_named_with_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nosuch")
    with pytest.raises(HostError, match="qemu-system-x86_64 is missing") as failure:
        facts.program("qemu-system-x86_64", dry=True)
    assert "qemu-system-x86" in failure.value.hint


def test_a_version_is_reached_by_itself_by_later_ones_and_by_one_that_nobody_tells():
    for version, reached in (((1, 13), True), ((1, 13, 2), True), ((1, 12, 9), False), ((), True)):
        assert Program(path="/v", version=version).has((1, 13)) is reached


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ("{}/directory", "is a directory"),
        ("{}/text", "is not executable"),
        ("{}/nosuch", "is not there"),
        ("nosuch-qemu", "is not on PATH"),
    ],
)
def test_a_declared_program_that_can_not_be_it_is_said_why(declared, why, tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_text("no program")
    with pytest.raises(HostError, match=f"{why}$") as failure:
        facts.program("qemu-system-x86_64", declared.format(tmp_path), dry=True)
    assert "correct `program`" in failure.value.hint


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'qemu: error while loading shared libraries: libx.so' >&2; exit 127", "libx.so"),
        ("kill -9 $$", "was killed by SIGKILL"),
    ],
)
def test_a_program_that_can_not_tell_its_version_is_broken_not_newer(script, words, qemu):
    with pytest.raises(HostError, match=words) as failure:
        facts.program("qemu-system-x86_64", qemu(script).path, dry=True)
    assert "name another" in failure.value.hint


def test_a_file_that_is_no_program_is_said_to_be_none(tmp_path):
    path = tmp_path / "qemu"
    path.write_bytes(b"\x7fELF garbage")
    path.chmod(0o755)
    with pytest.raises(HostError, match="Exec format error") as failure:
        facts.program("qemu-system-x86_64", str(path), dry=True)
    assert "name another" in failure.value.hint


def test_a_declared_path_starts_at_the_project_and_a_name_does_not(tmp_path):
    assert process.placed("bin/lkvm", tmp_path) == f"{tmp_path}/bin/lkvm"
    assert process.placed("/bin/lkvm", tmp_path) == "/bin/lkvm"
    assert process.placed("lkvm", tmp_path) == "lkvm"
    assert process.placed(None, tmp_path) is None
