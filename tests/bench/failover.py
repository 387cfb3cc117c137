"""Failover of PostgreSQL: ours beside raw `pg_ctl promote` and Patroni, by turns, while clients write.

`nox -s bench -- failover [--trials 102] [--rounds 3] [--peers 4] [--more] [--without-patroni]`. With `--more` the
trials of earlier runs in .bench/failover-trials.json count too, so that it can be run in pieces.

A trial: a primary with one or two standbys (synchronous, a quorum, asynchronous) takes writes of clients in another
process, through PgBouncer and of such that know all hosts. At a random moment it is killed (kill -9 of its postmaster;
sometimes something starts it again in the middle), stopped (SIGSTOP; sometimes it wakes up in the middle) or cut off
(its network drops everything; sometimes it is mended in the middle). plan_failover() is asked until nothing stands in
the way, failover() is called, and the clients say what they have seen. Then failback() brings the old primary back, and
the next trial strikes the other one.

The clock of `served` starts with the decision: the call of failover(), or of the script that promotes; everything that
proves, fences and writes down is in it. It ends when a client's write through PgBouncer is acknowledged by the new
primary. Noticing is not in it: `gap` starts with the fault. Patroni notices and decides by itself, so only its gap can
be told: that of clients who know all hosts, so that it has nobody to lead; it stands beside our gap, where a machine
confirms at once.

- raw: PAUSE, pg_ctl promote, pgbouncer.ini rewritten, RELOAD, RESUME, with psql; nothing is proven or written down. It
  has server_login_retry = 0.2; we have to do with what there is.
- patroni: 4.1 with etcd, ttl 20, loop_wait 1, retry_timeout 3, primary_start_timeout 0, synchronous_mode.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from attrs import asdict, evolve

from failover_ours import NAME, SWITCHOVER, Ours, Trial, ours
from failover_peers import PATRONI, RAW, Patroni, Raw, install_patroni, running_patroni
from failover_rig import Mode, rig
from harness import wait_until_quiet
from resilience.model.errors import ResilienceError
from resilience.testing.postgres import find_binaries, reachable_copy

MAJOR = 18
BROKEN = "broken"
ROOT = Path(__file__).parents[2]
RESULT = ROOT / ".bench" / "failover.json"
TRIALS = ROOT / ".bench" / "failover-trials.json"
SYNC = Mode("sync", 1, "FIRST 1 (b)")
MODES = (
    (SYNC, ("kill", "kill and restart", "hang", "kill", "hang and wake", "kill")),
    (Mode("quorum", 2, "ANY 1 (b, c)"), ("kill", "hang", "kill and restart", "hang and wake")),
    (Mode("async", 1), ("kill", "hang", "kill and restart", "kill", "hang and wake")),
    (Mode("sync cut", 1, "FIRST 1 (b)", proxied=True), ("cut", "cut and mend")),
    (Mode("quorum cut", 2, "ANY 1 (b, c)", proxied=True), ("cut", "cut and mend")),
    (Mode("async cut", 2, proxied=True), ("cut", "cut and mend")),
)
SHARES = (10, 6, 6, 4, 4, 4)
"""How many of 34 trials each mode gets."""


def one_round(folder: Path, bin_dir: Path, number: int, asked: argparse.Namespace) -> Iterator[Trial]:
    """Yield the trials of one round: all modes of ours, then raw, then Patroni."""
    chance = random.Random(asked.seed + number)  # noqa: S311  # nothing is to be kept secret
    wait_until_quiet()
    quota = asked.trials / asked.rounds / sum(SHARES)
    for (mode, faults), share in zip(MODES, SHARES, strict=True):
        count = round(share * quota * (number + 1)) - round(share * quota * number)
        # Another fault comes first in every round, so that a short run has all of them.
        todo = list(islice(cycle(faults), number * count, (number + 1) * count))
        with rig(mode, folder / "rig", bin_dir) as made, asyncio.Runner() as runner:
            session = ours(made, chance)
            us = runner.run(session.__aenter__())
            try:
                yield from attempted(us, runner, todo, 0 if mode.proxied else asked.switchovers)
            finally:
                runner.run(session.__aexit__(None, None, None))
        shutil.rmtree(folder / "rig", ignore_errors=True)
    with rig(SYNC, folder / "rig", bin_dir) as made:
        raw = Raw(made, chance)
        for _ in range(asked.peers):
            yield raw.fail()
    shutil.rmtree(folder / "rig", ignore_errors=True)
    if not asked.without_patroni:
        with running_patroni(folder / "patroni", bin_dir, ROOT / ".testbed" / "patroni", chance) as patroni:
            yield from _of(patroni, asked.peers)
        shutil.rmtree(folder / "patroni", ignore_errors=True)


def attempted(us: Ours, runner: asyncio.Runner, faults: Sequence[str], switchovers: int) -> Iterator[Trial]:
    """Yield the trials of one mode; what breaks is told as a trial of its own, and ends it."""
    name, mode = NAME, us.rig.mode
    try:
        for fault in faults:
            name = fault
            yield runner.run(us.fail(fault))
        for _ in range(switchovers):
            name = SWITCHOVER
            yield runner.run(us.switch_over())
    except (RuntimeError, OSError, ResilienceError) as error:
        trial = Trial(contender=BROKEN, mode=mode.name, fault=name, synchronous=mode.synchronous)
        yield evolve(trial, wrong=(f"{type(error).__name__}: {error}",))


def _of(patroni: Patroni, trials: int) -> Iterator[Trial]:
    for _ in range(trials):
        yield patroni.fail()


def summary(trials: Sequence[Trial]) -> dict[str, object]:
    """Return the figures that are promised, and what they rest on."""
    own = [each for each in trials if each.contender in (NAME, SWITCHOVER, BROKEN)]
    failed_over = [each for each in own if each.contender == NAME]
    switched = [each for each in own if each.contender == SWITCHOVER]
    alike = [each for each in failed_over if each.mode == SYNC.name and each.fault == "kill"]
    raw, patroni = ([each for each in trials if each.contender == name] for name in (RAW, PATRONI))
    served, gap = median(alike, "served_s"), median(alike, "gap_s")
    return {
        "trials": len(failed_over),
        "lost_acknowledged": sum(each.lost for each in own if each.synchronous),
        "two_writers": len([each for each in own if each.two_writers]),
        "median_s": median(failed_over, "served_s"),
        "ratios": {
            "vs_raw_promote": ratio(served, median(raw, "served_s")),
            "vs_patroni": ratio(gap, median(patroni, "gap_s")),
        },
        "switchover_failed": sum(each.failed for each in switched),
        "switchover_pause_s": median(switched, "pause_s"),
        "switchovers": len(switched),
        "switchover_longest_s": max((each.pause_s or 0.0 for each in switched), default=None),
        "bounds_too_small": len([each for each in failed_over if each.wrong]),
        "async_lost": sum(each.lost for each in failed_over if not each.synchronous),
        "async_trials": len([each for each in failed_over if not each.synchronous]),
        "killed_sync_median_s": served,
        "killed_sync_gap_s": gap,
        "raw_median_s": median(raw, "served_s"),
        "patroni_gap_s": median(patroni, "gap_s"),
        "patroni_lost": sum(each.lost for each in patroni),
        "broken": len([each for each in own if each.contender == BROKEN]),
        "refused_first": sum(len(each.refused) for each in failed_over),
    }


def median(trials: Sequence[Trial], name: str) -> float | None:
    """Return the median of what is known of a figure."""
    known = [value for each in trials if (value := getattr(each, name)) is not None]
    return statistics.median(known) if known else None


def ratio(one: float | None, other: float | None) -> float | None:
    """Divide what is known."""
    return one / other if one is not None and other else None


def tables(trials: Sequence[Trial]) -> str:
    """Write what clients saw, and where our time goes, as Markdown."""
    titles: tuple[str, ...] = (
        "contender",
        "mode",
        "fault",
        "trials",
        "decision to ack s (worst)",
        "clients of all hosts s",
    )
    titles += ("noticed s", "gap s", "lost", "two writers")
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for each in trials:
        groups.setdefault((each.contender, each.mode, each.fault), []).append(each)
    for (contender, mode, fault), some in groups.items():
        worst = max((each.served_s or 0.0 for each in some), default=0.0)
        lines.append(
            f"| {contender} | {mode} | {fault} | {len(some)} | {shown(median(some, 'served_s'))} ({worst:.2f}) "
            f"| {shown(median(some, 'hosts_s'))} | {shown(median(some, 'noticed_s'))} | {shown(median(some, 'gap_s'))} "
            f"| {sum(each.lost for each in some)} | {len([each for each in some if each.two_writers])} |"
        )
    lines += ["", "| step | " + " | ".join(PROFILED) + " |", "|---|" + "---|" * len(PROFILED)]
    names = dict.fromkeys(name for each in trials for name in each.steps if each.contender == NAME)
    for name in names:
        cells = []
        for wanted in PROFILED.values():
            seconds = [each.steps[name] for each in trials if wanted(each) and name in each.steps]
            cells.append(f"{statistics.median(seconds) * 1000:.0f} ms" if seconds else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PROFILED: dict[str, Callable[[Trial], bool]] = {
    "killed": lambda each: each.contender == NAME and each.fault.startswith("kill"),
    "hung": lambda each: each.contender == NAME and each.fault.startswith("hang"),
    "cut": lambda each: each.contender == NAME and each.fault.startswith("cut"),
    "switchover": lambda each: each.contender == SWITCHOVER,
}


def shown(seconds: float | None) -> str:
    """Write seconds for a table."""
    return "" if seconds is None else f"{seconds:.2f}"


def line_of(trial: Trial) -> str:
    """Write one trial in a line."""
    loss = f"  lost {trial.lost}" if trial.lost else ""
    told = trial.lost_from_s is not None and trial.bound_s is not None
    bound = f" of the last {trial.lost_from_s:.3f} s, told {trial.bound_s:.3f} s" if told else ""
    wrong = "".join(f"\n    WRONG: {each}" for each in (*trial.wrong, *trial.two_writers))
    pause = f"  pause {trial.pause_s:.3f} s, failed {trial.failed}" if trial.pause_s is not None else ""
    again = "".join(f"\n    refused first: {each}" for each in trial.refused)
    return (
        f"  {trial.contender:18} {trial.mode:11} {trial.fault:17} served {shown(trial.served_s):5} "
        f"gap {shown(trial.gap_s):5}{pause}{loss}{bound}{again}{wrong}"
    )


def main() -> None:
    """Run the bench, print its tables, write .bench/failover.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=102, help="failovers of ours in all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=4, help="trials of each peer in a round")
    parser.add_argument("--switchovers", type=int, default=2, help="in each mode of a round that has no proxies")
    parser.add_argument("--more", action="store_true", help="count the trials of earlier runs, too")
    parser.add_argument("--without-patroni", action="store_true")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    print(f"  --seed {asked.seed}", flush=True)
    trials = [Trial(**each) for each in json.loads(TRIALS.read_text())] if asked.more and TRIALS.exists() else []
    if not asked.without_patroni and (why := install_patroni(ROOT / ".testbed" / "patroni", ROOT / "constraints.txt")):
        print(f"  without Patroni: {why}")
        asked.without_patroni = True
    TRIALS.parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="resilience-bench-"))
    folder.chmod(0o711)
    try:
        bin_dir = reachable_copy(find_binaries(ROOT / ".testbed", MAJOR), folder)
        for number in range(asked.rounds):
            for trial in one_round(folder, bin_dir, number, asked):
                trials.append(trial)
                print(line_of(trial), flush=True)
                TRIALS.write_text(json.dumps([asdict(each) for each in trials], indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = summary(trials)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{tables(trials)}\n{json.dumps(result, indent=1)}")


if __name__ == "__main__":
    main()
