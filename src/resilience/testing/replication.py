"""A group of real PostgreSQL servers for tests, drills and benches: a primary and its standbys, in seconds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from resilience.postgres.failover.server import LocalServer, kill_all
from resilience.postgres.members import PostgresMember

from .postgres import TestServer, owned_folder

NAMES = ("a", "b", "c", "d", "e")
CAUGHT_UP_SECONDS = 30.0
KILL_SECONDS = 10.0
SETTINGS = {
    "wal_keep_size": "256MB",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "wal_retrieve_retry_interval": "200ms",
    "hot_standby_feedback": "on",
}


@define
class TestGroup:
    """Servers by the names of their members; `a` is the first primary. Synchronous on purpose, like `TestServer`."""

    __test__ = False

    folder: Path
    bin_dir: Path
    servers: dict[str, TestServer] = field(factory=dict)

    @property
    def primary(self) -> TestServer:
        """The first primary, whoever is it now."""
        return self.servers["a"]

    def create(
        self, standbys: int = 1, *, sync: str = "", slots: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        """Make and start a primary and so many standbys, and wait until all of them stream.

        `sync` is the primary's synchronous_standby_names; with `slots` each standby has one on the primary.
        """
        owned_folder(self.folder)
        primary = self.servers["a"] = TestServer(self.folder / "a", self.bin_dir)
        primary.create(settings={**SETTINGS, "fsync": "off", **(settings or {})})
        primary.start()
        for name in NAMES[1 : standbys + 1]:
            self.add(name, slot=slots)
        self.caught_up()
        if sync:
            primary.psql(f"alter system set synchronous_standby_names = '{sync}'")
            primary.psql("select pg_reload_conf()")

    def add(self, name: str, *, source: str = "a", slot: bool = False, more: Sequence[str] = ()) -> TestServer:
        """Make and start one more standby, of `source`; pg_basebackup is given `more` arguments."""
        upstream = self.servers[source]
        folder = owned_folder(self.folder / name)
        standby = self.servers[name] = TestServer(folder, self.bin_dir)
        more = [*more, *(["-S", name] if slot else [])]
        if slot:
            upstream.psql(f"select pg_create_physical_replication_slot('{name}', true)")
        upstream.run(
            "pg_basebackup", "-D", str(standby.data), "-d", upstream.dsn(application_name=name), "-R", "-c", "fast",
            "--no-sync", *more,
        )  # fmt: skip
        with (standby.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {standby.port}\nunix_socket_directories = '{folder}'\n")
        standby.start()
        return standby

    def caught_up(self, *, source: str = "a", names: Sequence[str] | None = None) -> None:
        """Wait until standbys (all of them) have and show all that the primary has. Raises TimeoutError."""
        wanted = set(names or self.servers) - {source}
        here = self.servers[source].psql("select pg_current_wal_flush_lsn()")
        query = f"select application_name from pg_stat_replication where replay_lsn >= '{here}'"  # noqa: S608  # the server's own words
        deadline = time.monotonic() + CAUGHT_UP_SECONDS
        while not wanted <= set(self.servers[source].psql(query).split()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{', '.join(sorted(wanted))} did not catch up with {source}")
            time.sleep(0.02)

    def members(self) -> tuple[PostgresMember, ...]:
        """The members, for a promoter and fencers on this machine."""
        return tuple(
            PostgresMember(name, dsn=server.dsn(), server=LocalServer(server.data, bin_dir=server.bin_dir))
            for name, server in self.servers.items()
        )

    def kill(self, name: str) -> None:
        """End a member with kill -9, all of its processes, and wait."""
        kill_all(self.servers[name].data, KILL_SECONDS)
        self.servers[name].kill()

    def restart(self, name: str) -> None:
        """Start a member that died as what it was, as its machine would. Raises RuntimeError with its log."""
        self.servers[name].kill()
        self.servers[name].start()

    def close(self) -> None:
        """End all members and remove everything, however they were started."""
        for name in self.servers:
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running_group(
    folder: Path,
    bin_dir: Path,
    standbys: int = 1,
    *,
    sync: str = "",
    slots: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[TestGroup]:
    """Make and start a group; ended and removed on leaving."""
    group = TestGroup(folder, bin_dir)
    try:
        group.create(standbys, sync=sync, slots=slots, settings=settings)
        yield group
    finally:
        group.close()
