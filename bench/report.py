"""The page of numbers, as one whole run of the benchmarks found them."""

import os
import platform
import re
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.bench import RELEASE
from bench.measure import Row, Series
from bench.peers import version

PAGE = Path(__file__).parent.parent / "docs/performance.md"
PROGRAMS = (
    "mmdebstrap",
    "mkfs.erofs",
    "mkosi",
    "debvm-create",
    "qemu-system-x86_64",
    "apt",
    "dpkg",
)


def line(row: Row) -> str:
    """Return a row of the table."""
    bound = row.bound
    limit = stretch = ""
    if bound:
        sign = "×" if bound.relative else row.unit
        limit = f"{bound.at_most:g} {sign}"
        stretch = f"{bound.stretch:g} {sign}" if bound.stretch is not None else ""
    peers = "; ".join(_peer(row, peer) for peer in row.peers) or "–"
    return f"| {row.what} | {_shown(row.ours, row.unit)} | {peers} | {limit} | {stretch} | {verdict(row)} |"


def verdict(row: Row) -> str:
    """Say which of the numbers to reach was reached."""
    value = row.value()
    if row.bound is None:
        return ""
    if value is None:
        reason = row.ours.missing or row.peers[0].missing
        return f"not measured: {reason}"
    if value > row.bound.at_most:
        return "**missed**"
    if row.bound.stretch is None:
        return "reached"
    return "stretch reached" if value <= row.bound.stretch else "reached"


def _shown(series: Series, unit: str) -> str:
    if not series.numbers:
        return "not measured"
    return f"{_number(series.median, unit)} {unit}"


def _number(value: float, unit: str) -> str:
    if unit in ("files",):
        return f"{value:.0f}"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _peer(row: Row, peer: Series) -> str:
    ratio = row.ratio(peer)
    if ratio is None:
        return f"{peer.name}: not measured: {peer.missing or 'ours is missing'}"
    return f"{peer.name} {_shown(peer, row.unit)}: **{ratio:.3g} ×**"


def _spread(row: Row) -> str:
    """List the lowest and highest number of each series, and its processor time."""
    return "; ".join(
        _range(series, row.unit) for series in (row.ours, *row.peers) if series.numbers
    )


def _range(series: Series, unit: str) -> str:
    low, high = (_number(each, unit) for each in (min(series.numbers), max(series.numbers)))
    times = len(series.numbers)
    text = f"{series.name} {low}–{high} {unit} in {times} run{'s' if times > 1 else ''}"
    if series.processor:
        text += f", processor time {_number(statistics.median(series.processor), 's')} s"
    return text


def page(rows: Sequence[Row], command: str, load: Sequence[float]) -> str:
    """Return the page as Markdown."""
    head = "| what | ours | peer: ours divided by it | at most | stretch | |\n|---|---|---|---|---|---|\n"
    missed = [row for row in rows if verdict(row) not in ("", "stretch reached") and row.bound]
    missed = [
        row
        for row in missed
        if row.bound and not (verdict(row) == "reached" and row.bound.stretch is None)
    ]
    reasons = "".join(f"- {row.what}: {_lack(row)}. {_reason(row)}\n" for row in missed)
    notes = "".join(f"- **{row.what}**: {row.how}. Spread: {_spread(row)}.\n" for row in rows)
    everything = "Everything was.\n"
    return (
        "# Performance\n\n"
        f"Written by `{command}`: medians of runs that took turns with the peer's, on the same machine in "
        "the same run, with packages downloaded already on both sides. A ratio below 1 is in our favour.\n\n"
        f"{_busy(load)}{head}{''.join(line(row) + chr(10) for row in rows)}\n"
        f"## What was not reached\n\n{reasons or everything}\n"
        f"## How it was measured\n\n{notes}\n"
        "Guest instructions: QEMU's `-icount shift=0,sleep=off` counts what the guest executes, so the "
        "numbers hardly depend on what else the machine does. Both sides boot with `idle=poll`, else the "
        "clock jumps to the next timer whenever the guest waits for a disk.\n\n"
        f"## With what\n\n{_machine(load)}"
    )


def _busy(load: Sequence[float]) -> str:
    """Say what the clock is worth where others used the processors too."""
    if max(load) <= (os.cpu_count() or 1) + 1:
        return ""
    return (
        f"**The machine was busy**: a load of up to {max(load):.0f} on {os.cpu_count()} processors. What is "
        "compared by the clock with a fixed limit took several times its usual time; the processor times "
        "below, the ratios and the guest instructions tell more.\n\n"
    )


def _lack(row: Row) -> str:
    return "the stretch goal was not" if verdict(row) == "reached" else verdict(row)


def _reason(row: Row) -> str:
    if row.value() is None:
        return ""
    return f"{row.why[:1].upper()}{row.why[1:]}." if row.why else ""


def _machine(load: Sequence[float]) -> str:
    found = {name: version(name) for name in PROGRAMS}
    programs = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"Linux {platform.release().partition('-')[0]}, {os.cpu_count()} CPUs ({model[1] if model else platform.machine()}), "
        f"Python {platform.python_version()}, guests of {RELEASE} under emulation; load average "
        f"{load[0]:.1f} at the start, {load[1]:.1f} at the end.\n\n{programs}"
        + (f"; not installed: {', '.join(absent)}" if absent else "")
        + ".\n"
    )
