"""A PostgreSQL server that runs on a data directory without acting as production.

It listens only on a socket in a private folder, reads its own configuration instead of the cluster's, archives nothing,
replicates nothing, runs no subscriptions and no preloaded libraries, and needs little memory. Whatever
postgresql.auto.conf says is overridden on the command line (PostgreSQL 20.1.4).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import asyncpg
from attrs import define, frozen
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, stop_never, wait_fixed

from resilience.concurrency import finish
from resilience.model.errors import Interrupted, ResilienceError, TimedOut, Unsupported

from .client import Dsn, sql
from .tools import Account, Running, Tools

LOOK_AGAIN_SECONDS = 0.02
STOP_SECONDS = 3600.0
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
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
    "recovery_target_lsn": "",
    "recovery_target": "",
    "recovery_target_inclusive": "on",
    "recovery_target_timeline": "latest",
    "recovery_target_action": "pause",
    "recovery_min_apply_delay": "0",
    "hot_standby": "on",
    # Replay waits for none of our queries, and asks again soon for what it did not get.
    "max_standby_archive_delay": "0",
    "max_standby_streaming_delay": "0",
    "wal_retrieve_retry_interval": "100ms",
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
    "lc_messages": "C",  # `recover` knows one of them by its words
    "cluster_name": "resilience-isolated",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "event_triggers": "off",
    "allow_in_place_tablespaces": "on",  # recovery takes a tablespace inside the data directory for a mistake otherwise
    "unix_socket_group": "",
    "unix_socket_permissions": "0700",
    "max_replication_slots": "1000",
    "max_active_replication_origins": "1000",
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

# What these say changes what is on disk: without track_commit_timestamp the end of recovery removes all timestamps.
_AS_IT_WAS = {
    "track_commit_timestamp setting": "track_commit_timestamp",
    "wal_log_hints setting": "wal_log_hints",
}
_SEGMENT = "Bytes per WAL segment"
_SINCE = {"summarize_wal": 17, "event_triggers": 17, "max_active_replication_origins": 18}
# What a role or a database sets outranks the server's command line, but not what the client asks for.
_ASKED = "-c session_preload_libraries= -c statement_timeout=0 -c idle_session_timeout=0"
_NOT_YET = (
    ConnectionError,
    FileNotFoundError,
    TimeoutError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.OperatorInterventionError,
    asyncpg.SerializationError,
)
# Said by a server that has just ended its recovery, and by asyncpg of a connection that the server has closed.
_RACED = ("recovery is not in progress", "connection is closed")
# Recovery has dropped the database we were in, or is about to, or it takes no connections any more.
_HOMELESS = (asyncpg.InvalidCatalogNameError, asyncpg.ObjectNotInPrerequisiteStateError)
_LAST_HOME = "template1"


@frozen
class LiveServer:
    """An isolated server that runs; `dsn` reaches it from this machine only."""

    dsn: str


@frozen(kw_only=True)
class Control:
    """What pg_control says: bytes per WAL segment, and the settings that a server on it has to have."""

    segment_size: int
    settings: Mapping[str, str]


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
                except BaseException:
                    await finish(running.stop(politely=signal.SIGINT, seconds=STOP_SECONDS))
                    raise
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
        # Everything is said, so that nothing in our environment says otherwise.
        return Dsn(
            {
                "host": str(folder),
                "port": "5432",
                "user": self.role,
                "dbname": self.database,
                "sslmode": "disable",
                "target_session_attrs": "any",
                "options": _ASKED,
            }
        )

    async def _settings(self, folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
        major = int((self.data / "PG_VERSION").read_text())
        # What was asked for comes last: of the recovery targets only one may be set at any time.
        known = {
            name: value for name, value in ISOLATED.items() if major >= _SINCE.get(name, 0) and name not in settings
        }
        return {
            "config_file": str(folder / "empty.conf"),
            "hba_file": str(folder / "pg_hba.conf"),
            "ident_file": str(folder / "pg_ident.conf"),
            "unix_socket_directories": str(folder),
            "external_pid_file": str(folder / "pid"),
            "shared_preload_libraries": ",".join(self.preload),
            "fsync": "on" if self.durable else "off",
            **known,
            **await self._inherited(),
            **settings,
        }

    async def control(self) -> Control:
        """Read pg_control. Raises Unsupported."""
        async with self.tools.start(
            "pg_controldata", ["-D", str(self.data)], stdout=True, account=self.account, environment={"LC_ALL": "C"}
        ) as running:
            printed = (await running.read_all()).decode()
            await running.succeed(Unsupported)
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in printed.splitlines())}
        return Control(
            segment_size=int(found[_SEGMENT]),
            settings={name: found[title] for title, name in (_AT_LEAST | _AS_IT_WAS).items() if title in found},
        )

    async def _inherited(self) -> dict[str, str]:
        control = await self.control()
        segment = control.segment_size >> 20
        sizes = {"min_wal_size": f"{2 * segment}MB", "max_wal_size": f"{max(1024, 8 * segment)}MB"}
        return {**control.settings, **sizes}


@define
class Server:
    """A server process that `Isolation` runs; `dsn` may change to another database of it."""

    running: Running
    dsn: Dsn

    async def ready(self, condition: str, *, seconds: float | None) -> None:
        """Wait until a query answers true, at most `seconds`.

        Raises Interrupted with the server's words if it dies or turns us away, TimedOut.
        """
        looking = AsyncRetrying(
            stop=stop_never if seconds is None else stop_after_delay(seconds),
            wait=wait_fixed(LOOK_AGAIN_SECONDS),
            retry=retry_if_result(lambda answered: not answered),
        )
        try:
            await looking(self._answers, condition)
        except RetryError as error:
            text = f"the server was not ready after {seconds or 0:.0f} s: {self.running.said}"
            raise TimedOut(text, operation="start", subject="postgres") from error

    async def watch(self, query: str) -> AsyncGenerator[asyncpg.Record]:
        """Yield the only row of a query again and again, as soon as it can be asked.

        Raises Interrupted with the server's words if it dies or turns us away.
        """
        while True:
            try:
                async with sql(self.dsn, operation="start") as connection:
                    while True:
                        (row,) = await connection.fetch(query)
                        yield row
                        await asyncio.sleep(LOOK_AGAIN_SECONDS)
            except ResilienceError as error:
                await self._not_yet(error)
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def shut_down(self) -> None:
        """Stop the server the fast way: clients are disconnected, everything is written (19.5, SIGINT).

        Raises Interrupted if it does not end as a server does that has written everything.
        """
        await self.running.stop(politely=signal.SIGINT, seconds=STOP_SECONDS)
        if self.running.process.returncode != 0:
            text = f"the server did not stop cleanly: {self.running.said}"
            raise Interrupted(text, operation="stop", subject="postgres")

    async def _answers(self, condition: str) -> bool:
        if self.running.process.returncode is None:
            try:
                async with sql(self.dsn, operation="start") as connection:
                    return bool(await connection.fetchval(condition))
            except ResilienceError as error:
                await self._not_yet(error)
                return False
        await self._ended()
        return False

    async def _not_yet(self, error: ResilienceError) -> None:
        """Return if the server may answer later, or else raise why it never will."""
        if self.running.process.returncode is not None:
            await self._ended()
        if isinstance(error.__cause__, _NOT_YET) or any(words in error.what for words in _RACED):
            return
        if isinstance(error.__cause__, _HOMELESS) and self.dsn.parameters["dbname"] != _LAST_HOME:
            self.dsn = self.dsn.database(_LAST_HOME)
        else:
            raise Interrupted(
                f"the server does not answer: {error.what}", operation="start", subject="postgres"
            ) from error

    async def _ended(self) -> NoReturn:
        await self.running.wait()
        raise Interrupted(f"the server stopped: {self.running.said}", operation="start", subject="postgres")
