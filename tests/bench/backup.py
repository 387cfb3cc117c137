"""Backup and restore of one PostgreSQL cluster: ours, pg_basebackup with zstd, and pgBackRest, by turns.

`nox -s bench -- backup [--gib 2] [--rounds 3]`. PostgreSQL 15 is the newest major that Debian's pgBackRest knows, so
all run on it. Everything is on one disk, the page cache is warm, and what is written is durable within the timed part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from attrs import define, field

from cluster import MAJOR, ROOT, binaries, fill, size_of
from harness import Contender, Hook, Run, by_turns, medians, nothing, table, write
from resilience.postgres.tools import Tools
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

OURS = "resilience"


@define
class Bench:
    """One cluster, and everybody who backs it up."""

    folder: Path
    bin_dir: Path
    documents: int = 0
    server: TestServer = field(init=False)
    tools: Tools = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = TestServer(self.folder / "cluster", self.bin_dir)
        self.tools = Tools.at(self.bin_dir)

    @property
    def pgbackrest(self) -> list[str]:
        """How pgBackRest is called; empty where it is not installed."""
        program = shutil.which("pgbackrest")
        return [program, f"--config={self.folder}/pgbackrest.conf", "--stanza=bench"] if program else []

    def create(self, gib: float) -> None:
        """Make and fill a cluster of about `gib` GiB, archiving WAL through pgBackRest where that is installed."""
        owned_folder(self.folder)
        settings = {"shared_buffers": "512MB", "max_wal_size": "8GB", "autovacuum": "off"}
        if self.pgbackrest:
            settings |= {"archive_mode": "on", "archive_command": f"'{' '.join(self.pgbackrest)} archive-push %p'"}
            self._configure_pgbackrest()
        self.server.create(settings=settings)
        self.server.start()
        if self.pgbackrest:
            self._as_server(*self.pgbackrest, "stanza-create")
        self.documents = fill(self.server, gib)
        print(
            f"PostgreSQL {MAJOR}, {size_of(self.server)}; pgBackRest: {'yes' if self.pgbackrest else 'not installed'}",
            flush=True,
        )

    def backups(self) -> list[Contender]:
        """Everybody, backing up."""
        basebackup = f"{self.tools.path('pg_basebackup')} -d '{self.server.dsn('backup')}' -X fetch -c fast -Ft"
        piped, served = self.folder / "piped.tar.zst", self.folder / "served"
        contenders = [
            self._ours("backup", self.server.dsn("backup"), self._remove(self.folder / OURS)),
            self._shell(
                "pg_basebackup, zstd -1 -T2",
                f"{basebackup} -D - | zstd -1 -T2 -q -o {piped} && sync {piped}",
                self._remove(piped),
            ),
        ]
        if "--with-zstd" in self.server.run("pg_config", "--configure").stdout:
            line = f"{basebackup} --compress=server-zstd:1 -D {served}"
            contenders.append(self._shell("pg_basebackup server-zstd:1", line, self._remove(served)))
        if self.pgbackrest:
            contenders.append(
                Contender(
                    name="pgbackrest zst1",
                    command=[*self.pgbackrest, "--type=full", "backup"],
                    account=unprivileged(),
                )
            )
        return contenders

    def restores(self) -> list[Contender]:
        """Everybody, restoring to a server that accepts connections; the rows are counted afterwards."""
        data, log = self.folder / "restored", self.folder / "restored.log"
        start = f"{self.tools.path('pg_ctl')} -D {data} -w -s -l {log} start || (cat {log}; false)"
        unpack = f"mkdir -m 700 {data} && zstd -dcq {{}} | tar -x -C {data} && sync -f {data} && {start}"
        hooks = (self._remove(data), lambda: self._check(data))
        contenders = [
            self._ours("restore", str(data), *hooks),
            self._shell("zstd -d, tar -x", unpack.format(self.folder / "piped.tar.zst"), *hooks),
        ]
        if self.pgbackrest:
            restore = [*self.pgbackrest, f"--pg1-path={data}", "--type=immediate", "--target-action=promote", "restore"]
            contenders.append(self._shell("pgbackrest zst1", f"{' '.join(restore)} && {start}", *hooks))
        return contenders

    def _ours(self, verb: str, where: str, before: Hook, after: Hook = nothing) -> Contender:
        report = self.folder / "ours.json"
        script = str(Path(__file__).with_name("ours.py"))
        arguments = [verb, str(self.folder / OURS), "bench", where, str(self.bin_dir)]
        return Contender(
            name=OURS,
            command=[sys.executable, script, str(report), *arguments],
            report=lambda: json.loads(report.read_text()),
            before=before,
            after=after,
        )

    def _shell(self, name: str, line: str, before: Hook, after: Hook = nothing) -> Contender:
        return Contender(
            name=name,
            command=["bash", "-o", "pipefail", "-ec", line],
            environment=self.tools.environment(),
            account=unprivileged(),
            before=before,
            after=after,
        )

    def _check(self, data: Path) -> None:
        count = self.server.psql("select count(*) from documents")
        if int(count) != self.documents:
            raise RuntimeError(f"{count} rows came back instead of {self.documents}")
        self.server.run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")

    def _configure_pgbackrest(self) -> None:
        repository = owned_folder(self.folder / "pgbackrest")
        (self.folder / "pgbackrest.conf").write_text(
            f"[global]\nrepo1-path={repository}\nlog-path={repository}\nlock-path={repository}\n"
            f"spool-path={owned_folder(self.folder / 'spool')}\nlog-level-file=off\nlog-level-console=warn\n"
            "compress-type=zst\ncompress-level=1\nprocess-max=2\nstart-fast=y\nrepo1-retention-full=99\n"
            f"[bench]\npg1-path={self.server.data}\npg1-port={self.server.port}\npg1-socket-path={self.server.folder}\n"
            "pg1-user=postgres\n"
        )

    def _as_server(self, *command: str) -> None:
        account = unprivileged()
        subprocess.run(
            command,
            check=True,
            cwd="/",
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )

    def _remove(self, path: Path) -> Hook:
        def remove() -> None:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        return remove


def ratios(backups: Mapping[str, Run], restores: Mapping[str, Run]) -> dict[str, float]:
    """Compare ours with the fastest peer in wall time, and with pgBackRest in what the machine had to do."""

    def fastest(runs: Mapping[str, Run]) -> float:
        return min(run.wall_s for name, run in runs.items() if name != OURS)

    result = {
        "backup_wall": backups[OURS].wall_s / fastest(backups),
        "restore_wall": restores[OURS].wall_s / fastest(restores),
    }
    if peer := backups.get("pgbackrest zst1"):
        result["backup_cpu"] = backups[OURS].cpu_machine_s / peer.cpu_machine_s
    return result


def import_ms() -> float:
    """Measure what `import resilience` adds to a bare interpreter: median of 11."""

    def once(code: str) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        return (time.monotonic() - began) * 1000

    return statistics.median(once("import resilience") - once("pass") for _ in range(11))


def main() -> None:
    """Run the bench, print its tables, write .bench/backup.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resilience-bench-"))
    folder.chmod(0o755)
    bench = Bench(folder / "all", binaries(folder))
    try:
        bench.create(asked.gib)
        runs = by_turns("backup", bench.backups(), rounds=asked.rounds)
        bench.server.stop()
        runs += by_turns("restore", bench.restores(), rounds=asked.rounds)
    finally:
        bench.server.kill()
        shutil.rmtree(folder, ignore_errors=True)
    backups, restores = medians(runs, "backup"), medians(runs, "restore")
    ours = [run for run in runs if run.contender == OURS]
    result = {
        "ratios": ratios(backups, restores),
        "peak_rss_mib": max(run.extra["own_peak_rss_mib"] for run in ours),
        "loop_stall_ms": max(run.extra["loop_stall_ms"] for run in ours),
        "import_ms": import_ms(),
    }
    write(ROOT / ".bench" / "backup.json", result, runs)
    print(f"\n{table(backups, first=OURS)}\n\n{table(restores, first=OURS)}\n\n{json.dumps(result, indent=1)}")


if __name__ == "__main__":
    main()
