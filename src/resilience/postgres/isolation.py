"""A PostgreSQL server that runs on a data directory without acting as production.

It listens only on a socket in a private folder, reads its own configuration instead of the cluster's, archives nothing,
replicates nothing, runs no subscriptions and no preloaded libraries, and needs little memory. Whatever
postgresql.auto.conf says is overridden on the command line (PostgreSQL 20.1.4).
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from attrs import frozen
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from resilience.concurrency import finish
from resilience.model.errors import Interrupted, TimedOut, Unsupported

from .client import Dsn
from .tools import Account, Running, Tools

LOOK_AGAIN_SECONDS = 0.02
STOP_SECONDS = 60.0
READY_SECONDS = 300.0

ISOLATED: Mapping[str, str] = {
    "listen_addresses": "",
    "port": "5432",
    "ssl": "off",
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "restore_command": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    # Of these only one may be set at any time, so the one that `recover` sets comes last.
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
    "recovery_target_lsn": "",
    "recovery_target": "",
    "recovery_min_apply_delay": "0",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "max_logical_replication_workers": "0",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "autovacuum": "off",
    "jit": "off",
    "huge_pages": "off",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "summarize_wal": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "warning",
    "cluster_name": "resilience-isolated",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "external_pid_file": "",
    "recovery_init_sync_method": "syncfs",
}

# Recovery refuses to open for reading if these are lower than they were on the server the WAL comes from (26.4.1).
_AT_LEAST = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}


@frozen
class LiveServer:
    """An isolated server that runs; `dsn` reaches it from this machine only."""

    dsn: str


@frozen(kw_only=True)
class Isolation:
    """How to run an isolated server on `data`: with whose programs, as whom, connecting as which role."""

    tools: Tools
    data: Path
    account: Account | None
    role: str
    database: str
    preload: Sequence[str] = ()
    durable: bool = True

    @asynccontextmanager
    async def run(self, settings: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
        """Run the server until leaving; it is then stopped cleanly and waited for. It may not answer yet."""
        folder = self._make_folder()
        try:
            arguments = ["-D", str(self.data)]
            for name, value in (await self._settings(folder, settings or {})).items():
                arguments += ["-c", f"{name}={value}"]
            async with self.tools.start("postgres", arguments, account=self.account) as running:
                server = Server(running, self._dsn(folder))
                try:
                    yield server
                finally:
                    await finish(server.shut_down())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="resilience-"))
        for name, text in (("pg_hba.conf", "local all all trust\n"), ("pg_ident.conf", ""), ("empty.conf", "")):
            (folder / name).write_text(text)
        if self.account is not None and os.geteuid() == 0:
            for path in (folder, *folder.iterdir()):
                os.chown(path, self.account.uid, self.account.gid)
        return folder

    def _dsn(self, folder: Path) -> Dsn:
        return Dsn({"host": str(folder), "port": "5432", "user": self.role, "dbname": self.database})

    async def _settings(self, folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
        major = int((self.data / "PG_VERSION").read_text())
        known = {name: value for name, value in ISOLATED.items() if name != "summarize_wal" or major >= 17}
        return {
            "config_file": str(folder / "empty.conf"),
            "hba_file": str(folder / "pg_hba.conf"),
            "ident_file": str(folder / "pg_ident.conf"),
            "unix_socket_directories": str(folder),
            "shared_preload_libraries": ",".join(self.preload),
            "fsync": "on" if self.durable else "off",
            **known,
            **await self._inherited(),
            **settings,
        }

    async def _inherited(self) -> dict[str, str]:
        async with self.tools.start(
            "pg_controldata", ["-D", str(self.data)], stdout=True, account=self.account, environment={"LC_ALL": "C"}
        ) as running:
            printed = (await running.read_all()).decode()
            await running.succeed(Unsupported)
        found = dict(line.split(":", 1) for line in printed.splitlines() if ":" in line)
        return {setting: found[title].strip() for title, setting in _AT_LEAST.items() if title in found}


@frozen
class Server:
    """A server process that `Isolation` runs."""

    running: Running
    dsn: Dsn

    async def ready(self, condition: str, *, seconds: float) -> None:
        """Wait until a query answers true. Raises Interrupted with the server's words if it dies, TimedOut."""
        looking = AsyncRetrying(
            stop=stop_after_delay(seconds),
            wait=wait_fixed(LOOK_AGAIN_SECONDS),
            retry=retry_if_result(lambda answered: not answered),
        )
        try:
            await looking(self._answers, condition)
        except RetryError as error:
            text = f"the server was not ready after {seconds:.0f} s: {self.running.said}"
            raise TimedOut(text, operation="start", subject="postgres") from error

    async def shut_down(self) -> None:
        """Stop the server the fast way: clients are disconnected, everything is written (19.5, SIGINT)."""
        await self.running.stop(politely=signal.SIGINT, seconds=STOP_SECONDS)

    async def _answers(self, condition: str) -> bool:
        if self.running.process.returncode is not None:
            await self.running.wait()
            raise Interrupted(f"the server stopped: {self.running.said}", operation="start", subject="postgres")
        try:
            connection = await asyncpg.connect(self.dsn.uri(), timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        try:
            return bool(await connection.fetchval(condition))
        finally:
            await connection.close()
