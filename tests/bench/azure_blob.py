"""Backups on Azure Blob Storage: ours, barman-cloud and pgBackRest by turns, and what bare transfers would take.

`nox -s bench -- azure [--gib 2] [--rounds 3] [--mib 600]`. Three measurements, the service being Azurite over TLS:
- backup and restore of one PostgreSQL 15, the newest major that Debian's pgBackRest knows, each contender with an
  Azurite of its own that begins empty; ours with its bytes sealed, and without;
- put and get of bytes that cannot be compressed: ours with all that a backup does to them, sealed, beside bare aiohttp
  (Put Block and Put Block List, ranges) and the SDK's `upload_blob`;
- the same put into a service that throws everything away, where the sender is the slowest.
Everything is on one machine: Azurite's share is in "CPU machine". A peer that is not there is named as missing.

The file is not called azure.py because a script hides the package that has its name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from azure_peers import Peer, barman, install_barman, pgbackrest
from cluster import MAJOR, ROOT, binaries, fill, size_of
from emulator import Emulator
from harness import Contender, Hook, Run, by_turns, medians, nothing, table, write
from resilience.keys import KeyFile
from resilience.postgres.tools import Tools
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

OURS, UNSEALED = "resilience, sealed", "resilience, not sealed"
BOTH = (OURS, UNSEALED)
RAW, SDK = "aiohttp", "upload_blob"
BARMAN = ROOT / ".testbed" / "barman"
HERE = Path(__file__).parent


@define
class Bench:
    """One cluster, one service, and everybody who moves bytes between them."""

    folder: Path
    bin_dir: Path
    emulator: Emulator
    documents: int = 0
    missing: dict[str, str] = field(factory=dict)
    peers: list[Peer] = field(factory=list)
    server: TestServer = field(init=False)
    tools: Tools = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = TestServer(self.folder / "cluster", self.bin_dir)
        self.tools = Tools.at(self.bin_dir)

    def create(self, gib: float, mib: int) -> None:
        """Make and fill a cluster of about `gib` GiB, a file of `mib` MiB, a key; and look which peers there are."""
        owned_folder(self.folder).chmod(0o755)
        self.archive_by("true")
        # pgBackRest looks for its name in the command.
        archive = {"archive_mode": "on", "archive_command": f"'{self.folder}/archive %p %f # pgbackrest at its turn'"}
        self.server.create(settings={"shared_buffers": "512MB", "max_wal_size": "8GB", "autovacuum": "off", **archive})
        self.server.start()
        self.documents = fill(self.server, gib)
        KeyFile.create(self.folder / "key")
        with self.file.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
        if why := install_barman(BARMAN, ROOT / "constraints.txt"):
            self.missing["barman-cloud"] = why
        if not shutil.which("pgbackrest"):
            self.missing["pgbackrest"] = "it is not installed"
        self.peers += [*pgbackrest(self.folder, self.server, self.emulator)]
        self.peers += barman(self.folder, self.server, self.emulator, environment=BARMAN)
        print(f"PostgreSQL {MAJOR}, {size_of(self.server)}; missing: {self.missing or 'nobody'}", flush=True)

    @property
    def file(self) -> Path:
        """Bytes that cannot be compressed."""
        return self.folder / "bytes"

    def archive_by(self, line: str) -> None:
        """Have the server archive its WAL by a line for sh, $1 being the path and $2 the name."""
        new = self.folder / "archive.new"
        new.write_text(f"#!/bin/sh\n{line}\n")
        new.chmod(0o755)
        new.rename(self.folder / "archive")

    def backups(self) -> list[Contender]:
        """Everybody, backing up."""
        dsn = self.server.dsn("backup")
        ours = [self._ours(name, "backup", dsn, str(self.bin_dir), before=self._empty(name)) for name in BOTH]
        return ours + [
            self._shell(peer, peer.backs_up, before=self._empty(peer.name, peer), after=lambda: self.archive_by("true"))
            for peer in self.peers
        ]

    def restores(self) -> list[Contender]:
        """Everybody, restoring to a server that accepts connections; the rows are counted afterwards."""
        data, log = self.folder / "restored", self.folder / "cluster" / "restored.log"
        account = unprivileged()
        drop = f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups " if account else ""
        start = f"{drop}{self.tools.path('pg_ctl')} -D {data} -w -s -l {log} start || (cat {log}; false)"

        def before(name: str) -> Hook:
            def hook() -> None:
                shutil.rmtree(data, ignore_errors=True)
                self.emulator.start(self.folder / "azurite" / name)

            return hook

        ours = [
            self._ours(name, "restore", str(data), str(self.bin_dir), before=before(name), after=self._check)
            for name in BOTH
        ]
        return ours + [
            self._shell(
                peer,
                f"{peer.restores.format(data=data)} && {start if peer.account is None else start.removeprefix(drop)}",
                before=before(peer.name),
                after=self._check,
            )
            for peer in self.peers
        ]

    def puts(self) -> list[Contender]:
        """Put the file: ours sealed, aiohttp, the SDK. Each begins with an empty service."""
        raw = [self._raw(name, way) for name, way in ((RAW, "put"), (SDK, "upload_blob"))]
        return [self._ours(OURS, "put", str(self.file), before=self._empty(f"{OURS} put")), *raw]

    def gets(self) -> list[Contender]:
        """Get it again: ours, aiohttp."""

        def before(name: str) -> Hook:
            return lambda: self.emulator.start(self.folder / "azurite" / f"{name} put")

        return [self._ours(OURS, "get", before=before(OURS)), self._raw(RAW, "get", before(RAW))]

    def sinks(self, url: str) -> list[Contender]:
        """Put as many bytes, made up in memory, into the service at `url`, which throws them away."""
        elsewhere = {"BENCH_CONTAINER": f"{url}?sig=none"}
        mib = str(self.file.stat().st_size >> 20)
        return [
            self._ours(OURS, "sink", mib, environment=elsewhere),
            self._ours(UNSEALED, "sink", mib, environment=elsewhere),
            self._python(RAW, "raw.py", ["sink", mib], nothing, nothing, elsewhere),
        ]

    def _empty(self, name: str, peer: Peer | None = None) -> Hook:
        def hook() -> None:
            self.emulator.begin(self.folder / "azurite" / name)
            if peer is not None:
                self.archive_by(peer.archives)
                self._run_as(peer)

        return hook

    def _run_as(self, peer: Peer) -> None:
        if peer.prepares:
            user = peer.account.uid if peer.account else None
            group = peer.account.gid if peer.account else None
            groups: list[int] | None = [] if peer.account else None
            command = ["bash", "-ec", peer.prepares]
            subprocess.run(command, check=True, cwd="/", user=user, group=group, extra_groups=groups)

    def _ours(
        self,
        name: str,
        verb: str,
        *arguments: str,
        before: Hook = nothing,
        after: Hook = nothing,
        environment: Mapping[str, str] | None = None,
    ) -> Contender:
        key = str(self.folder / "key") if name == OURS else ""
        return self._python(name, "azure_ours.py", [verb, key, *arguments], before, after, environment)

    def _raw(self, name: str, way: str, before: Hook | None = None) -> Contender:
        empty = self._empty(f"{name} put")
        return self._python(name, "raw.py", [way, str(self.file)], before or empty, nothing, None)

    def _python(
        self,
        name: str,
        script: str,
        arguments: Sequence[str],
        before: Hook,
        after: Hook,
        environment: Mapping[str, str] | None,
    ) -> Contender:
        report = self.folder / "report.json"
        authority = str(self.emulator.certificate)
        return Contender(
            name=name,
            command=[sys.executable, str(HERE / script), str(report), authority, *arguments],
            environment=environment or {"BENCH_CONTAINER": self.emulator.shared_url},
            report=lambda: json.loads(report.read_text()),
            before=before,
            after=after,
        )

    def _shell(self, peer: Peer, line: str, *, before: Hook, after: Hook) -> Contender:
        return Contender(
            name=peer.name,
            command=["bash", "-o", "pipefail", "-ec", line],
            environment={**self.tools.environment(), **peer.environment},
            account=peer.account,
            before=before,
            after=after,
        )

    def _check(self) -> None:
        count = self.server.psql("select count(*) from documents")
        if int(count) != self.documents:
            raise RuntimeError(f"{count} rows came back instead of {self.documents}")
        self.server.run("pg_ctl", "-D", str(self.folder / "restored"), "-m", "immediate", "-w", "stop")


@contextmanager
def null_sink(emulator: Emulator) -> Iterator[str]:
    """Run the service that throws everything away, with the emulator's certificate; its container's URL."""
    command = [sys.executable, str(HERE / "null_sink.py"), str(emulator.certificate), str(emulator.folder / "key.pem")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"https://127.0.0.1:{int(process.stdout.readline())}/devstoreaccount1/bench"
        finally:
            process.kill()


def ratios(runs: Sequence[Run]) -> dict[str, float]:
    """Tell how many times as fast as each peer we are, sealed: in wall time, or in bytes a second where those count."""
    result = {}
    for case, suffix in (("backup", ""), ("restore", "_restore")):
        rows = medians(runs, case)
        for peer, name in (("vs_barman", "barman-cloud"), ("vs_pgbackrest", "pgbackrest")):
            walls = [run.wall_s for each, run in rows.items() if each.startswith(name)]
            if walls and OURS in rows:
                result[f"{peer}{suffix}"] = min(walls) / rows[OURS].wall_s
    for case, peer, name in (("put", RAW, "vs_raw"), ("put", SDK, "vs_upload_blob"), ("get", RAW, "vs_raw_get")):
        if rows := medians(runs, case):
            result[name] = rows[OURS].extra["mb_s"] / rows[peer].extra["mb_s"]
    return result


def measure(bench: Bench, gib: float, rounds: int, mib: int, only: str | None) -> list[Run]:
    """Run all three measurements, or one."""
    bench.create(gib if only in (None, "server") else 0.01, mib)
    runs: list[Run] = []
    if only in (None, "server"):
        runs += by_turns("backup", bench.backups(), rounds=rounds)
        bench.server.stop()
        runs += by_turns("restore", bench.restores(), rounds=rounds)
    if only in (None, "bytes"):
        runs += by_turns("put", bench.puts(), rounds=rounds)
        runs += by_turns("get", bench.gets(), rounds=rounds)
    bench.emulator.stop()
    if only in (None, "sink"):
        with null_sink(bench.emulator) as url:
            runs += by_turns("sink", bench.sinks(url), rounds=rounds)
    return runs


def summary(runs: Sequence[Run], missing: Mapping[str, str]) -> dict[str, object]:
    """Sum up what the issue's aims are about."""
    ours = [run for run in runs if run.contender in BOTH]
    result: dict[str, object] = {
        "ratios": ratios(runs),
        # A restore's tree has a PostgreSQL in it, which is not ours.
        "peak_rss_mib": max(
            max(run.extra["own_peak_rss_mib"], 0 if run.case == "restore" else run.peak_rss_mib) for run in ours
        ),
        "loop_stall_ms": max(run.extra["loop_stall_ms"] for run in ours),
        "missing": dict(missing),
    }
    if sinks := medians(runs, "sink"):
        result["tls_sink_mb_s"] = sinks[OURS].extra["mb_s"]
    return result


def main() -> None:
    """Run the bench, print its tables, write .bench/azure.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=600)
    parser.add_argument("--only", choices=("server", "bytes", "sink"), help="one of the three measurements")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resilience-bench-"))
    folder.chmod(0o755)
    with Emulator.over_tls(folder / "tls", ROOT / ".testbed") as emulator:
        bench = Bench(folder / "all", binaries(folder), emulator)
        try:
            runs = measure(bench, asked.gib, asked.rounds, asked.mib, asked.only)
        finally:
            bench.server.kill()
            shutil.rmtree(folder, ignore_errors=True)
    result = summary(runs, bench.missing)
    write(ROOT / ".bench" / "azure.json", result, runs)
    for case in dict.fromkeys(run.case for run in runs):
        print(f"\n{case}\n{table(medians(runs, case), first=OURS)}")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
