"""Runs contenders by turns on an otherwise quiet machine and says what each cost: wall, CPU, memory."""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from attrs import asdict, field, frozen

from resilience.postgres.tools import Account

SAMPLE_SECONDS = 0.1
QUIET = 0.15
BACKED = 3 << 30
_BLOCK = bytes(4 << 20)
QUIET_WITHIN_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


Hook = Callable[[], None]


def nothing() -> None:
    """Do nothing before or after a run."""


@frozen(kw_only=True)
class Run:
    """One timed run. CPU seconds are the tool's process tree and the whole machine; memory is the tree's peak RSS."""

    contender: str
    case: str
    wall_s: float
    cpu_tree_s: float
    cpu_machine_s: float
    peak_rss_mib: float
    extra: Mapping[str, float] = field(factory=dict)


@frozen(kw_only=True)
class Contender:
    """Somebody who does the same thing. `command` is timed, the hooks are not; `report` reads extra numbers."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(factory=dict)
    account: Account | None = None
    before: Hook = nothing
    after: Hook = nothing
    report: Callable[[], Mapping[str, float]] = dict


def by_turns(case: str, contenders: Sequence[Contender], *, rounds: int) -> list[Run]:
    """Run every contender `rounds` times, taking turns, and print each run as it ends."""
    runs = []
    for _ in range(rounds):
        for contender in contenders:
            contender.before()
            os.sync()
            wait_until_quiet()
            back_memory()
            run = timed(case, contender)
            contender.after()
            runs.append(run)
            print(f"  {case:8} {run.contender:28} {run.wall_s:7.2f} s  machine {run.cpu_machine_s:6.2f} s", flush=True)
    return runs


def timed(case: str, contender: Contender) -> Run:
    """Run one command and measure it. Raises RuntimeError with its output if it fails."""
    machine, began = machine_cpu(), time.monotonic()
    process = subprocess.Popen(
        contender.command,
        env={**os.environ, **contender.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        user=contender.account.uid if contender.account else None,
        group=contender.account.gid if contender.account else None,
        extra_groups=[] if contender.account else None,
    )
    tree = _Tree(process.pid)
    watching = threading.Thread(target=tree.watch)
    watching.start()
    output, _ = process.communicate()
    wall = time.monotonic() - began
    tree.over.set()
    watching.join()
    if process.returncode:
        raise RuntimeError(
            f"{contender.name} failed with {process.returncode}: {output.decode(errors='replace')[-2000:]}"
        )
    return Run(
        contender=contender.name,
        case=case,
        wall_s=wall,
        cpu_tree_s=tree.cpu,
        cpu_machine_s=machine_cpu() - machine,
        peak_rss_mib=tree.peak / (1 << 20),
        extra=contender.report(),
    )


class _Tree:
    """Samples a process and its descendants; a process keeps its last sample when it is gone."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.over = threading.Event()
        self.peak = 0
        self._cpu: dict[tuple[int, float], float] = {}

    @property
    def cpu(self) -> float:
        return sum(self._cpu.values())

    def watch(self) -> None:
        while not self.over.is_set():
            resident = 0
            try:
                for process in [self.root, *self.root.children(recursive=True)]:
                    with process.oneshot():
                        times = process.cpu_times()
                        self._cpu[process.pid, process.create_time()] = times.user + times.system
                        resident += process.memory_info().rss
            except psutil.Error:
                pass
            self.peak = max(self.peak, resident)
            self.over.wait(SAMPLE_SECONDS)


def wait_until_quiet() -> None:
    """Wait until the machine is nearly idle, so that one run does not pay for another's remains; 30 s at most."""
    deadline = time.monotonic() + QUIET_WITHIN_SECONDS
    while time.monotonic() < deadline and psutil.cpu_percent(interval=0.5) / 100 > QUIET:
        continue


def back_memory() -> None:
    """Touch much memory and give it back.

    A virtual machine hands free memory to its host, and touching it for the first time again costs up to ten times as
    much as the write itself. Whoever ran first after a pause would pay for all.
    """
    with mmap.mmap(-1, BACKED) as memory:
        for _ in range(0, BACKED, len(_BLOCK)):
            memory.write(_BLOCK)


def medians(runs: Sequence[Run], case: str) -> dict[str, Run]:
    """Return one run per contender that holds the median of every number."""
    result = {}
    for name in dict.fromkeys(run.contender for run in runs if run.case == case):
        mine = [run for run in runs if run.case == case and run.contender == name]
        keys = dict.fromkeys(key for run in mine for key in run.extra)
        result[name] = Run(
            contender=name,
            case=case,
            wall_s=statistics.median(run.wall_s for run in mine),
            cpu_tree_s=statistics.median(run.cpu_tree_s for run in mine),
            cpu_machine_s=statistics.median(run.cpu_machine_s for run in mine),
            peak_rss_mib=statistics.median(run.peak_rss_mib for run in mine),
            extra={key: statistics.median(run.extra[key] for run in mine if key in run.extra) for key in keys},
        )
    return result


def table(rows: Mapping[str, Run], *, first: str) -> str:
    """Write medians as a Markdown table, wall relative to the contender named first."""
    base = rows[first].wall_s
    lines = [
        "| contender | wall s | to ours | CPU tree s | CPU machine s | peak RSS MiB | |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in rows.values():
        extra = ", ".join(f"{key} {value:.6g}" for key, value in run.extra.items())
        lines.append(
            f"| {run.contender} | {run.wall_s:.2f} | {run.wall_s / base:.2f} | {run.cpu_tree_s:.2f} "
            f"| {run.cpu_machine_s:.2f} | {run.peak_rss_mib:.0f} | {extra} |"
        )
    return "\n".join(lines)


def write(path: Path, result: Mapping[str, object], runs: Sequence[Run]) -> None:
    """Write the numbers of a bench as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**result, "runs": [asdict(run) for run in runs]}, indent=1) + "\n")


def percentile(numbers: Sequence[float], percent: int) -> float:
    """Return the smallest number that so many percent do not exceed."""
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def machine_cpu() -> float:
    """Return the CPU seconds that the whole machine has spent so far."""
    fields = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS
