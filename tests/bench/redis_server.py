"""Redis of a gigabyte backed up, ours beside `redis-cli --rdb | zstd -1`; a master killed, ours beside redis-py.

`nox -s bench -- redis [--gib 1] [--rounds 3] [--trials 20] [--only backup|failover] [--major 7]`. Writes
.bench/redis.json. The backups run by turns, twice: on a quiet server for wall, CPU and memory, and on one that a
redis-benchmark asks all the while, for what that sees of it. What is written is durable within the timed part.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, evolve, field, frozen

from cluster import ROOT
from harness import Contender, Run, by_turns, medians, table, timed, wait_until_quiet, write
from redis_failover import Trial, run_trials, summary
from resilience.testing.machine import owned_folder
from resilience.testing.redis import TestRedis, find_redis, reachable_program

OURS = "resilience"
PEER = "redis-cli --rdb | zstd -1"
NOBODY = "nobody backs up"
REQUESTS = 4000
CLIENTS = 4
PIPE = 1000
_NUMBERS = random.Random(1)  # noqa: S311  # the same data every time


@frozen
class Bench:
    """One server, and everybody who backs it up."""

    folder: Path
    server: TestRedis

    def contenders(self) -> list[Contender]:
        """Both, backing up to a file system."""
        archive, piped, report = self.folder / "archive", self.folder / "piped.rdb.zst", self.folder / "ours.json"
        line = f"redis-cli -p {self.server.port} --rdb - 2>/dev/null | zstd -1 -q -o {piped} && sync {piped}"
        ours = str(Path(__file__).with_name("redis_ours.py"))
        return [
            Contender(
                name=OURS,
                command=[sys.executable, ours, str(report), str(archive), self.server.url],
                before=lambda: shutil.rmtree(archive, ignore_errors=True),
                report=lambda: {**json.loads(report.read_text()), "stored_mib": size(archive)},
            ),
            Contender(
                name=PEER,
                command=["bash", "-o", "pipefail", "-ec", line],
                before=lambda: piped.unlink(missing_ok=True),
                report=lambda: {"stored_mib": size(piped)},
            ),
        ]

    def under_load(self, *, rounds: int) -> list[Run]:
        """Back up while clients ask the server all the time, and measure how long they wait."""
        idle = Contender(name=NOBODY, command=["sleep", "5"])
        runs = []
        for _ in range(rounds):
            for contender in [*self.contenders(), idle]:
                contender.before()
                wait_until_quiet()
                with asked(self.server) as load:
                    run = timed("loaded", contender)
                run = evolve(run, extra={**run.extra, **load.seen})
                runs.append(run)
                print(
                    f"  loaded   {run.contender:28} {run.wall_s:7.2f} s  p99 {run.extra['p99_ms']:.2f} ms", flush=True
                )
        return runs


@define
class Load:
    """A redis-benchmark that begins again whenever it ends; each line is one of its runs."""

    port: int
    lines: list[Mapping[str, float]] = field(factory=list)
    over: threading.Event = field(factory=threading.Event)

    def run(self) -> None:
        command = ["redis-benchmark", "-p", str(self.port), "-t", "set", "-n", str(REQUESTS), "-c", str(CLIENTS)]
        command += ["-r", "1000000", "-d", "200", "--csv"]
        while not self.over.is_set():
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            names, values = ([each.strip('"') for each in line.split('","')] for line in said[-2:])
            self.lines.append({name: float(text) for name, text in zip(names[1:], values[1:], strict=True)})

    @property
    def seen(self) -> dict[str, float]:
        """What clients saw: requests a second, the median of all runs' 99th percentiles, and the longest wait."""
        return {
            "requests_s": statistics.median(each["rps"] for each in self.lines),
            "p99_ms": statistics.median(each["p99_latency_ms"] for each in self.lines),
            "worst_p99_ms": max(each["p99_latency_ms"] for each in self.lines),
            "longest_ms": max(each["max_latency_ms"] for each in self.lines),
        }


@contextmanager
def asked(server: TestRedis) -> Iterator[Load]:
    """Ask a server all the while."""
    load = Load(server.port)
    asking = threading.Thread(target=load.run)
    asking.start()
    try:
        yield load
    finally:
        load.over.set()
        asking.join()


def fill(server: TestRedis, gib: float) -> int:
    """Write about so many GiB of sessions, half of each hardly compressible, and return how many keys there are."""
    keys = int(gib * (1 << 30) / 1100)
    with server.client() as client:
        for first in range(0, keys, PIPE):
            pipe = client.pipeline(transaction=False)
            for number in range(first, min(first + PIPE, keys)):
                pipe.set(f"session:{number}", session(number))
            pipe.execute()
        return int(client.dbsize())


def session(number: int) -> bytes:
    """Return a session of about a kilobyte."""
    token = base64.b64encode(_NUMBERS.randbytes(375)).decode()
    pages = [f"/orders/{(number * step) % 99_991}" for step in range(1, 17)]
    basket = [{"article": (number * step) % 9973, "amount": step, "state": "reserved"} for step in range(1, 4)]
    return json.dumps({"user": number, "language": "en", "token": token, "pages": pages, "basket": basket}).encode()


def size(path: Path) -> float:
    """Return how many MiB lie below a path."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files) / (1 << 20)


def backups(folder: Path, binary: Path, gib: float, rounds: int) -> list[Run]:
    """Fill a server, and back it up by turns, quiet and loaded."""
    server = TestRedis(folder / "server", binary)
    try:
        server.start()
        keys = fill(server, gib)
        used = server.info("used_memory_human")
        print(f"Redis {server.info('redis_version')}, {keys:,} keys, {used} in memory", flush=True)
        bench = Bench(owned_folder(folder / "backups"), server)
        return by_turns("backup", bench.contenders(), rounds=rounds) + bench.under_load(rounds=rounds)
    finally:
        server.kill()


def ratios(runs: Sequence[Run], trials: Sequence[Trial]) -> dict[str, float]:
    """Compare ours with the peer: wall of a backup, and the median time without a master."""
    found = {}
    if runs:
        quiet, loaded = medians(runs, "backup"), medians(runs, "loaded")
        found["backup_wall"] = quiet[OURS].wall_s / quiet[PEER].wall_s
        found["backup_cpu"] = quiet[OURS].cpu_machine_s / quiet[PEER].cpu_machine_s
        found["backup_wall_loaded"] = loaded[OURS].wall_s / loaded[PEER].wall_s
        found["p99_loaded"] = loaded[OURS].extra["p99_ms"] / loaded[PEER].extra["p99_ms"]
    if trials:
        found["failover_vs_plain"] = summary(trials).vs_plain
    return found


def main() -> None:
    """Run the bench, print its tables, write .bench/redis.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20, help="masters killed; half as many are made to hang")
    parser.add_argument("--only", choices=["backup", "failover"])
    parser.add_argument("--major", type=int, default=7)
    asked_for = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resilience-bench-"))
    folder.chmod(0o755)
    runs: list[Run] = []
    trials: list[Trial] = []
    try:
        binary = reachable_program(find_redis(ROOT / ".testbed", asked_for.major), folder)
        if asked_for.only != "failover":
            runs = backups(folder, binary, asked_for.gib, asked_for.rounds)
            for case in ("backup", "loaded"):
                print(f"\n{case}\n{table(medians(runs, case), first=OURS)}\n", flush=True)
        if asked_for.only != "backup":
            trials = asyncio.run(run_trials(folder, binary, killed=asked_for.trials, hung=asked_for.trials // 2))
            print(f"\n{summary(trials)}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, object] = {"ratios": ratios(runs, trials)}
    if trials:
        result["failover"] = summary(trials).numbers
    write(ROOT / ".bench" / "redis.json", result, runs)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
