"""Ten minutes of trouble, then twenty restores: does continuous archiving keep what it promises?

`nox -s bench -- soak [--minutes 10] [--restores 20] [--seed N]`. pgbench runs at full speed and four writers keep a
ledger of what the server acknowledged to them. Meanwhile the server is restarted and killed, the archiver is killed
with -9 every 20 to 40 seconds, and its store fails at random, now and then for longer than a back-off. Then the cluster
is restored to random moments. A moment is an LSN that the server named between two looks at the ledger: what was
acknowledged before it has to be there, what was begun after it must not, and no writer's rows may have a hole.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
from attrs import define, field, frozen

from resilience import Archive, RecoveryTarget, backup, coverage, restore
from resilience.model.errors import ResilienceError, StorageFailed, Unavailable
from resilience.postgres import PostgresScratch, PostgresTarget
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer, find_binaries, reachable_copy, running_server

ROOT = Path(__file__).parents[2]
MAJOR = 17
WRITERS = 4
INTERVAL = 0.5
BASE_EVERY_SECONDS = 120.0
START_ATTEMPTS = 20
LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)


@frozen(kw_only=True)
class Moment:
    """An LSN, with what every writer had seen acknowledged before it and had not begun before it was named."""

    lsn: str
    seconds: float
    acknowledged: dict[int, int]
    begun: dict[int, int]


@define
class Ledger:
    """What the server acknowledged to each writer, and what it was asked for; numbers only grow."""

    acknowledged: dict[int, int] = field(factory=lambda: dict.fromkeys(range(WRITERS), 0))
    begun: dict[int, int] = field(factory=lambda: dict.fromkeys(range(WRITERS), 0))
    unknown: int = 0


@define
class Soak:
    """One cluster in trouble."""

    server: TestServer
    folder: Path
    dice: random.Random
    ledger: Ledger = field(factory=Ledger)
    moments: list[Moment] = field(factory=list)
    kills: int = 0
    restarts: int = 0
    bases: int = 0

    @property
    def archive(self) -> Archive:
        """The archive, by a way that does not fail."""
        return Archive(LocalStore(self.folder / "archive"))

    async def run(self, minutes: float) -> None:
        """Make trouble for so many minutes, then let the archiver catch up."""
        self.server.psql("create table ledger (writer int, number int, primary key (writer, number))")
        self.server.run("pgbench", "-i", "-q", "-s", "10", self.server.dsn())
        await backup(PostgresTarget("soak", dsn=self.server.dsn("backup")), self.archive)
        began = time.monotonic()
        async with asyncio.timeout(minutes * 60 + 120), asyncio.TaskGroup() as group:
            troubles = [
                *(group.create_task(self._write(writer)) for writer in range(WRITERS)),
                group.create_task(self._load()),
                group.create_task(self._sample(began)),
                group.create_task(self._restart()),
                group.create_task(self._back_up()),
            ]
            archiving = group.create_task(self._archive())
            await asyncio.sleep(minutes * 60)
            for trouble in troubles:
                trouble.cancel()
            await asyncio.gather(*troubles, return_exceptions=True)
            archiving.cancel()
            await asyncio.gather(archiving, return_exceptions=True)
        await self._settle()

    async def _write(self, writer: int) -> None:
        """Insert one number after another; what the server did not answer is looked up when it is back."""
        while True:
            with contextlib.suppress(*LOST):
                async with self._connected() as connection:
                    known = await connection.fetchval("select max(number) from ledger where writer = $1", writer)
                    self.ledger.acknowledged[writer] = max(self.ledger.acknowledged[writer], known or 0)
                    if (known or 0) < self.ledger.acknowledged[writer]:
                        raise SystemExit(f"the server itself lost number {self.ledger.acknowledged[writer]}")
                    self.ledger.begun[writer] = known or 0
                    await self._insert(connection, writer)
            self.ledger.unknown += 1
            await asyncio.sleep(0.1)

    async def _insert(self, connection: asyncpg.Connection, writer: int) -> None:
        while True:
            self.ledger.begun[writer] += 1
            number = self.ledger.begun[writer]
            await connection.execute("insert into ledger values ($1, $2)", writer, number)
            self.ledger.acknowledged[writer] = number
            await asyncio.sleep(self.dice.uniform(0, 0.01))

    async def _sample(self, began: float) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0.5, 2))
            with contextlib.suppress(*LOST):
                async with self._connected() as connection:
                    before = dict(self.ledger.acknowledged)
                    lsn = await connection.fetchval("select pg_current_wal_flush_lsn()::text")
                    after = dict(self.ledger.begun)
                self.moments.append(Moment(lsn=lsn, seconds=time.monotonic() - began, acknowledged=before, begun=after))

    async def _load(self) -> None:
        """Run pgbench at full speed, again whenever a restart has ended it."""
        while True:
            command = [str(self.server.bin_dir / "pgbench"), "-n", "-c", "2", "-T", "3600", self.server.dsn()]
            environment = {**os.environ, "LD_LIBRARY_PATH": str(self.server.bin_dir.parent / "lib")}
            quiet = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, env=environment)
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.sleep(0.2)

    async def _restart(self) -> None:
        """Stop the server, cleanly or by kill -9, and start it again."""
        while True:
            await asyncio.sleep(self.dice.uniform(60, 100))
            await asyncio.to_thread(self.dice.choice((self.server.stop, self.server.kill)))
            await self._start()
            self.restarts += 1

    async def _start(self) -> None:
        """Start the server; what kill -9 left of the old one may need a moment to be gone."""
        for _ in range(START_ATTEMPTS):
            with contextlib.suppress(RuntimeError):
                await asyncio.to_thread(self.server.start)
                return
            await asyncio.sleep(0.5)
        raise SystemExit("the server does not start again")

    async def _back_up(self) -> None:
        while True:
            await asyncio.sleep(BASE_EVERY_SECONDS)
            with contextlib.suppress(ResilienceError):  # the server may be restarted meanwhile
                await backup(PostgresTarget("soak", dsn=self.server.dsn("backup")), self.archive)
                self.bases += 1

    async def _archive(self) -> None:
        """Run the archiver in a process of its own and kill it with -9, over and over."""
        while True:
            async with self._archiver(failing=True) as process:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), self.dice.uniform(20, 40))
                    raise SystemExit(f"the archiver ended by itself with {process.returncode}")
            self.kills += 1

    async def _settle(self) -> None:
        """Let an archiver whose store works catch up with the server."""
        lsn = self.server.psql("select pg_current_wal_flush_lsn()")
        async with self._archiver(failing=False, until=lsn) as process:
            if await asyncio.wait_for(process.wait(), 300):
                raise SystemExit(f"the archiver did not catch up: {process.returncode}")

    @contextlib.asynccontextmanager
    async def _archiver(self, *, failing: bool, until: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
        seed = str(self.dice.randrange(1 << 30)) if failing else ""
        arguments = ["archive", self.server.dsn("backup"), str(self.folder / "archive"), seed, until]
        process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.server.uri(), timeout=5, command_timeout=10)
        try:
            yield connection
        finally:
            connection.terminate()


async def prove(soak: Soak, count: int, bin_dir: Path) -> list[dict[str, object]]:
    """Restore to random moments and compare each with the ledger; exits with the first difference."""
    proofs = []
    for moment in soak.dice.sample(soak.moments, min(count, len(soak.moments))):
        scratch = PostgresScratch(bin_dir=bin_dir, within=soak.folder)
        try:
            report = await restore(soak.archive, "soak", into=scratch, until=RecoveryTarget.lsn(moment.lsn))
            async with scratch.live() as live:
                rows = await ledger_of(live.dsn)
        finally:
            await scratch.discard()
        for writer in range(WRITERS):
            there, last = rows.get(writer, (0, 0))
            if there != last:
                raise SystemExit(f"{moment.lsn}: writer {writer} has {there} rows up to {last}: a hole")
            if not moment.acknowledged[writer] <= last <= moment.begun[writer]:
                raise SystemExit(
                    f"{moment.lsn}: writer {writer} is at {last}, which is not between {moment.acknowledged[writer]}, "
                    f"acknowledged before, and {moment.begun[writer]}, begun before"
                )
        proofs.append({"lsn": moment.lsn, "at_s": round(moment.seconds, 1), "restore_s": round(report.seconds, 1)})
        print(
            f"  {moment.seconds:6.1f} s  {moment.lsn:>12}  restored in {report.seconds:5.1f} s, ledger agrees",
            flush=True,
        )
    return proofs


async def ledger_of(dsn: str) -> dict[int, tuple[int, int]]:
    """Read how many numbers every writer has, and the last one."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select writer, count(*) as rows, max(number) as last from ledger group by 1")
    finally:
        await connection.close()
    return {row["writer"]: (row["rows"], row["last"]) for row in rows}


async def archive_until(dsn: str, root: str, seed: str, until: str) -> None:
    """Be the archiver's process: stream for ever, or up to an LSN; with a seed, into a store that fails at random."""
    from resilience.postgres import WalArchiver
    from resilience.postgres.lsn import parse_lsn
    from resilience.testing.faults import WatchedStore

    dice = random.Random(seed)  # noqa: S311  # trouble, not a secret
    away = [0.0]

    async def trouble(operation: str, key: str) -> None:
        if dice.random() < 0.0005:
            away[0] = time.monotonic() + dice.uniform(1, 8)
        if time.monotonic() < away[0] or dice.random() < 0.01:
            raise StorageFailed("the disk had enough", operation=operation, subject=key)

    store = LocalStore(root)
    archive = Archive(WatchedStore(store, trouble) if seed else store)
    while True:
        try:
            async with WalArchiver("soak", dsn=dsn, archive=archive, interval=INTERVAL) as wal:
                while not until or wal.status.durable_lsn is None or wal.status.durable_lsn.offset < parse_lsn(until):
                    await asyncio.sleep(0.2)
            return
        except Unavailable:
            if not seed:
                raise
            await asyncio.sleep(1)  # it says at once that it cannot begin; whoever supervises it begins again


async def soak(folder: Path, asked: argparse.Namespace) -> dict[str, object]:
    """Run the soak and prove it; return what happened."""
    bin_dir = reachable_copy(find_binaries(ROOT / ".testbed", MAJOR), folder)
    settings = {"max_wal_size": "1GB", "checkpoint_timeout": "1min", "shared_buffers": "256MB"}
    dice = random.Random(asked.seed)  # noqa: S311  # trouble, not a secret
    with running_server(folder / "cluster", bin_dir, settings=settings) as server:
        made = Soak(server, folder, dice)
        began = time.monotonic()
        await made.run(asked.minutes)
        lsn = server.psql("select pg_current_wal_flush_lsn()")
        covered = await coverage(made.archive, "soak")
    print(f"\n{covered}\n")
    proofs = await prove(made, asked.restores, bin_dir)
    stored = sum(path.stat().st_size for path in (folder / "archive").rglob("*") if path.is_file())
    return {
        "seed": asked.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "soaked_minutes": asked.minutes,
        "wal_until": lsn,
        "acknowledged": sum(made.ledger.acknowledged.values()),
        "answers_lost": made.ledger.unknown,
        "archiver_kills": made.kills,
        "server_restarts": made.restarts,
        "bases": made.bases + 1,
        "archive_mib": round(stored / (1 << 20)),
        "moments": len(made.moments),
        "proofs": proofs,
    }


def main() -> None:
    """Run the soak, print its proofs, write .bench/soak.json."""
    if sys.argv[1:2] == ["archive"]:
        asyncio.run(archive_until(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--restores", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="resilience-soak-"))
    folder.chmod(0o711)
    try:
        result = asyncio.run(soak(folder, asked))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    (ROOT / ".bench").mkdir(exist_ok=True)
    (ROOT / ".bench" / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "proofs"}, indent=1))


if __name__ == "__main__":
    main()
