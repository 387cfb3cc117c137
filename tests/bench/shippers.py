"""Those who ship WAL for a server, ours and pgBackRest, and a server with a queue of full segments for them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from attrs import define, field, frozen

from harness import Run, back_memory, machine_cpu, percentile, wait_until_quiet
from resilience.commands import archive_command, restore_command
from resilience.commands.config import load
from resilience.commands.resident import LOCK
from resilience.postgres.lsn import parse_lsn
from resilience.testing.postgres import TestServer, owned_folder, unprivileged
from resilience.testing.python import reachable_python

OURS = "resilience"
PUSH_WITHIN_SECONDS = 300.0

# What fills WAL: rows as wide as an application's, updated now and then.
FILL = """
insert into documents
select n, jsonb_build_object('id', n, 'customer', md5(n::text), 'amount', round((random() * 1000)::numeric, 2),
                             'note', md5((n * 7)::text) || md5((n * 3)::text))
from generate_series({first}, {last}) n
"""


@frozen(kw_only=True)
class Shipper:
    """Somebody who ships WAL: the two commands for the server, and how to begin with nothing archived."""

    name: str
    push: str
    get: str
    clear: Callable[[], None]
    stop: Callable[[], None]


@define
class Bench:
    """One cluster with a queue of full segments, and everybody who ships them."""

    folder: Path
    bin_dir: Path
    server: TestServer = field(init=False)
    queue: list[str] = field(factory=list)
    rows: int = 0
    stops: list[Callable[[], None]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.server = TestServer(self.folder / "cluster", self.bin_dir)

    @property
    def status(self) -> Path:
        """Where the server notes what it has archived."""
        return self.server.data / "pg_wal" / "archive_status"

    def create(self, segments: int) -> None:
        """Make a cluster and fill so many segments, none of them archived."""
        owned_folder(self.folder)
        settings = {
            "archive_mode": "on",
            "archive_command": "''",
            "wal_keep_size": "32GB",
            "max_wal_size": "32GB",
            "shared_buffers": "512MB",
            "autovacuum": "off",
        }
        self.server.create(settings=settings)
        self.server.start()
        self.server.psql("create role backup login replication")
        self.server.psql("create table documents (id bigint primary key, body jsonb)")
        while len(self.ready()) < segments:
            self._add_rows()
        self.queue = self.ready()[:segments]

    def fill(self, up_to: int) -> int:
        """Write WAL up to an LSN, or a little farther, and return up to where."""
        while (written := parse_lsn(self.server.psql("select pg_current_wal_flush_lsn()"))) < up_to:
            self._add_rows()
        return written

    def _add_rows(self) -> None:
        self.server.psql(FILL.format(first=self.rows + 1, last=self.rows + 50_000))
        self.rows += 50_000

    def close(self) -> None:
        """Stop whatever runs."""
        for stop in self.stops:
            stop()
        self.server.kill()

    def ready(self) -> list[str]:
        """List the segments that wait to be archived, oldest first."""
        return sorted(path.stem for path in self.status.glob("*.ready") if len(path.stem) == 24)

    def push(self, shipper: Shipper) -> Run:
        """Have the server archive the whole queue by one command."""
        self.again()
        shipper.clear()
        quiet()
        machine, began = machine_cpu(), time.monotonic()
        self.server.psql(f"alter system set archive_command = {quoted(shipper.push)}")
        self.server.psql("select pg_reload_conf()")
        last = self.status / f"{self.queue[-1]}.done"
        while not last.exists():
            if time.monotonic() - began > PUSH_WITHIN_SECONDS:
                raise RuntimeError(f"{shipper.name} does not archive:\n{self.server.log.read_text()[-3000:]}")
            time.sleep(0.002)
        wall, cpu = time.monotonic() - began, machine_cpu() - machine
        self.server.psql("alter system set archive_command = ''")
        self.server.psql("select pg_reload_conf()")
        done = sorted((self.status / f"{name}.done").stat().st_ctime_ns / 1e6 for name in self.queue)
        return shipped("push", shipper, wall, cpu, [b - a for a, b in pairwise(done)])

    def again(self) -> None:
        """Put the whole queue back to waiting."""
        for name in self.queue:
            with contextlib.suppress(FileNotFoundError):
                (self.status / f"{name}.done").rename(self.status / f"{name}.ready")

    def get(self, shipper: Shipper) -> Run:
        """Ask for every segment, one after the other, as a recovering server does."""
        where = owned_folder(self.folder / "got")
        account = unprivileged()
        quiet()
        milliseconds = []
        machine, began = machine_cpu(), time.monotonic()
        for name in self.queue:
            asked = time.monotonic()
            command = shipper.get.replace("%f", name).replace("%p", str(where / "RECOVERYXLOG"))
            subprocess.run(
                ["/bin/sh", "-c", command],
                check=True,
                cwd=self.server.data,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
            milliseconds.append((time.monotonic() - asked) * 1000)
            (where / "RECOVERYXLOG").unlink()
        wall, cpu = time.monotonic() - began, machine_cpu() - machine
        shutil.rmtree(where)
        return shipped("get", shipper, wall, cpu, milliseconds)


def shipped(case: str, shipper: Shipper, wall: float, cpu: float, milliseconds: Sequence[float]) -> Run:
    """Sum up how many segments were shipped, and how long each took."""
    shipper.stop()
    count = len(milliseconds) + (case == "push")
    run = Run(
        contender=shipper.name,
        case=case,
        wall_s=wall,
        cpu_tree_s=0.0,
        cpu_machine_s=cpu,
        peak_rss_mib=0.0,
        extra={
            "segments_s": count / wall,
            "cpu_ms_segment": cpu * 1000 / count,
            "p50_ms": percentile(milliseconds, 50),
            "p99_ms": percentile(milliseconds, 99),
        },
    )
    print(f"  {case:6} {run.contender:22} {run.extra['segments_s']:6.1f} segments/s", flush=True)
    return run


def quiet() -> None:
    """Begin as every run begins."""
    os.sync()
    wait_until_quiet()
    back_memory()


def quoted(text: str) -> str:
    """Write a string as SQL does."""
    return "'" + text.replace("'", "''") + "'"


def ours(bench: Bench) -> Shipper:
    """Our two commands, as docs/point-in-time-recovery.md configures them."""
    folder, config = bench.folder / OURS, bench.folder / "wal.toml"
    config.write_text(f'target = "bench"\ndirectory = "{folder}"\ndata = "{bench.server.data}"\n')
    config.chmod(0o644)
    python, loaded = reachable_python(bench.folder), load(config)

    def stop() -> None:
        """End the resident process and take its spool away, so that the next run begins with nothing."""
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((loaded.folder / LOCK).read_text()), signal.SIGTERM)
        shutil.rmtree(loaded.folder, ignore_errors=True)

    def clear() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        owned_folder(folder)

    bench.stops.append(stop)
    return Shipper(
        name=OURS,
        push=archive_command(config, python=python),
        get=restore_command(config, python=python),
        clear=clear,
        stop=stop,
    )


def pgbackrest(bench: Bench, *, asynchronously: bool) -> Shipper:
    """Return pgBackRest with zstd 1 and two processes."""
    name = "async" if asynchronously else "sync"
    home = owned_folder(bench.folder / f"pgbackrest-{name}")
    config = bench.folder / f"pgbackrest-{name}.conf"
    config.write_text(
        f"[global]\nrepo1-path={home}/repo\nlog-path={home}\nlock-path={home}\nspool-path={home}/spool\n"
        f"log-level-file=off\nlog-level-console=warn\ncompress-type=zst\ncompress-level=1\nprocess-max=2\n"
        f"archive-async={'y' if asynchronously else 'n'}\narchive-get-queue-max=256MiB\n"
        f"[bench]\npg1-path={bench.server.data}\npg1-port={bench.server.port}\n"
        f"pg1-socket-path={bench.server.folder}\npg1-user=postgres\n"
    )
    call = f"{shutil.which('pgbackrest')} --config={config} --stanza=bench"

    def clear() -> None:
        for folder in ("repo", "spool"):
            shutil.rmtree(home / folder, ignore_errors=True)
            owned_folder(home / folder)
        as_server(bench, f"{call} --no-online stanza-create")

    def stop() -> None:
        shutil.rmtree(home / "spool", ignore_errors=True)

    return Shipper(
        name=f"pgbackrest {name} zst1",
        push=f"{call} archive-push %p",
        get=f'{call} archive-get %f "%p"',
        clear=clear,
        stop=stop,
    )


def as_server(bench: Bench, command: str) -> None:
    """Run a command as the account that servers run as."""
    account = unprivileged()
    subprocess.run(
        ["/bin/sh", "-c", command],
        check=True,
        cwd=bench.server.data,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
