"""`microvm-launch`: what the scripts of a runner hand themselves to."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from microvm.errors import MicroVMError
from microvm.host import standard
from microvm.launch import planning
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

SHUTDOWN_S = 60.0
"""What a guest has to shut down before its VMM is ended: `bin/microvm-shutdown` takes no option."""


def main(argv: list[str] | None = None) -> int:
    """Carry out one verb in the current directory, which is the state directory."""
    standard.complete()
    words = sys.argv[1:] if argv is None else argv
    if len(words) < 2 or words[0] not in _VERBS:
        sys.stderr.write(f"usage: microvm-launch {'|'.join(_VERBS)} RUNNER [SIZE]\n")
        return 2
    try:
        return _VERBS[words[0]](_runner(Path(words[1]).resolve()), words[2:])
    except MicroVMError as error:
        hint = f"\n  {error.hint}" if error.hint else ""
        _say(f"{error}{hint}")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("microvm-launch: interrupted\n")
        return 130


def _runner(path: Path) -> Path:
    """Return the runner's directory; its scripts name themselves."""
    return path.parent.parent if path.is_file() else path


def _plan(runner: Runner, runner_dir: Path, *, helpers_only: bool = False) -> LaunchPlan:
    state_dir = Path.cwd()
    start = planning.Start(
        runner_dir=runner_dir,
        state_dir=state_dir,
        project_dir=Path(os.environ.get(planning.PROJECT, state_dir)),
        helpers_only=helpers_only,
    )
    return planning.plan(runner, start)


def _run(runner_dir: Path, rest: list[str]) -> int:
    from contextlib import ExitStack

    from microvm.launch import helpers, starting, taps

    runner, state_dir = planning.load_runner(runner_dir), Path.cwd()
    with ExitStack() as stack:
        stack.enter_context(starting.machine_lock(state_dir, runner.name))
        starting.check_devices(runner)
        plan = _plan(runner, runner_dir)
        for note in plan.notes:
            _say(note)
        starting.prepare(plan, state_dir, reset_root=False, say=_say)
        made = taps.up(plan, state_dir)
        stack.callback(taps.down, state_dir, names=made)  # unless the VMM starts
        stack.enter_context(taps.opened(plan))
        if not helpers.served_elsewhere(plan, state_dir):
            stack.enter_context(helpers.running(plan, state_dir))
        # The VMM takes this process over, and with it every lock; the helpers end with it.
        starting.become_vmm(plan)


def _say(text: str) -> None:
    sys.stderr.write(f"microvm-launch: {text}\n")


def _shutdown(runner_dir: Path, rest: list[str]) -> int:
    from microvm.launch.control import shutdown_machine

    _say(shutdown_machine(planning.load_runner(runner_dir), Path.cwd(), timeout_s=SHUTDOWN_S))
    return 0


def _balloon(runner_dir: Path, rest: list[str]) -> int:
    from microvm.launch.control import set_balloon

    if len(rest) != 1 or not rest[0].isdigit():
        sys.stderr.write("usage: microvm-balloon SIZE (the guest's memory in MiB)\n")
        return 2
    set_balloon(planning.load_runner(runner_dir), Path.cwd(), int(rest[0]))
    return 0


def _interfaces(
    runner_dir: Path, rest: list[str], *, kind: Literal["tap", "macvtap"], up: bool
) -> int:
    from microvm.launch import taps

    state_dir = Path.cwd()
    if up:
        plan = planning.interfaces(planning.load_runner(runner_dir), state_dir)
        taps.up(plan, state_dir, kinds=[kind], locked=False)
    else:
        taps.down(state_dir, kind=kind)
    return 0


def _virtiofsd(runner_dir: Path, rest: list[str]) -> int:
    from microvm.launch import helpers

    plan = _plan(planning.load_runner(runner_dir), runner_dir, helpers_only=True)
    helpers.serve(plan, Path.cwd())
    return 0


_VERBS: dict[str, Callable[[Path, list[str]], int]] = {
    "run": _run,
    "shutdown": _shutdown,
    "balloon": _balloon,
    "tap-up": partial(_interfaces, kind="tap", up=True),
    "tap-down": partial(_interfaces, kind="tap", up=False),
    "macvtap-up": partial(_interfaces, kind="macvtap", up=True),
    "macvtap-down": partial(_interfaces, kind="macvtap", up=False),
    "virtiofsd-run": _virtiofsd,
}
