"""A real PgBouncer for tests, examples and benches: on a free port of the loopback, in a folder of its own.

Synchronous on purpose: it outlives the event loop of one test. As root it runs as an unprivileged account.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, field

from .machine import end, free_port, owned_folder, serving, unprivileged

START_SECONDS = 10.0
PASSWORD = "console"  # noqa: S105  # of a process that lives for seconds


class MissingPgBouncer(Exception):
    """PgBouncer is not installed."""


def find_pgbouncer() -> str:
    """Return the path of PgBouncer. Raises MissingPgBouncer."""
    # Debian keeps it where only root's PATH leads.
    found = shutil.which(
        "pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )
    if found is None:
        raise MissingPgBouncer("PgBouncer is not installed (on Debian and Ubuntu: apt-get install pgbouncer)")
    return found


@define
class TestPgBouncer:
    """One PgBouncer with its files in `folder`, and, once started, its process.

    `databases` are lines of its configuration: a name, and where that leads. Its console takes the user `admin` with
    PASSWORD, and the user `watcher`, who may only look; everybody else comes in without one.
    """

    __test__ = False

    folder: Path
    databases: Mapping[str, str]
    settings: Mapping[str, str] = field(factory=dict)
    port: int = field(factory=free_port)
    command: str = field(factory=find_pgbouncer)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.folder / "pgbouncer.ini"

    @property
    def log(self) -> Path:
        """What it logged."""
        return self.folder / "log"

    @property
    def pid(self) -> int | None:
        """Its process; None while it does not run."""
        return self._process.pid if self._process else None

    def console(self, user: str = "admin", password: str = PASSWORD) -> str:
        """Return a connection string for its admin console."""
        return f"host=127.0.0.1 port={self.port} user={user} password={password} dbname=pgbouncer"

    def dsn(self, database: str, user: str = "postgres") -> str:
        """Return a connection string as a client has it."""
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}"

    def create(self) -> None:
        """Write its files."""
        owned_folder(self.folder)
        hba = self.folder / "hba.conf"
        hba.write_text(
            "host pgbouncer all 127.0.0.1/32 scram-sha-256\n"
            "hostssl all all 127.0.0.1/32 trust\n"
            "host all all 127.0.0.1/32 trust\n"
        )
        users = self.folder / "users.txt"
        users.write_text("".join(f'"{name}" "{word}"\n' for name, word in _USERS.items()))
        wanted = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "hba",
            "auth_hba_file": str(hba),
            "auth_file": str(users),
            "admin_users": "admin",
            "stats_users": "watcher",
            "pool_mode": "transaction",
            "ignore_startup_parameters": "extra_float_digits",
            **self.settings,
        }
        lines = [
            "; Made for a test.",
            "[databases]",
            *(f"{name} = {text}" for name, text in self.databases.items()),
            "",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in wanted.items()),
        ]
        self.config.write_text("\n".join(lines) + "\n")
        if account := unprivileged():
            for path in (hba, users, self.config):
                os.chown(path, account.uid, account.gid)

    def start(self) -> None:
        """Start it and wait until it listens. Raises RuntimeError with its log."""
        self._process = serving(
            [self.command, str(self.config)],
            log=self.log,
            cwd=self.folder,
            answers=self._listens,
            seconds=START_SECONDS,
            account=unprivileged(),
        )

    def stop(self) -> None:
        """Stop it at once, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with kill -9, if it runs."""
        self._end(signal.SIGKILL)

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _end(self, number: int) -> None:
        end(self._process, number)
        self._process = None


_USERS = {"admin": PASSWORD, "watcher": PASSWORD, "postgres": "", "backup": ""}


@contextmanager
def running_pgbouncer(
    databases: Mapping[str, str], *, settings: Mapping[str, str] | None = None
) -> Iterator[TestPgBouncer]:
    """Run a PgBouncer with these databases; ended, and its folder removed, on leaving."""
    command = find_pgbouncer()
    folder = Path(tempfile.mkdtemp(prefix="resilience-pgbouncer-"))
    bouncer = TestPgBouncer(folder, databases, settings or {}, command=command)
    try:
        bouncer.create()
        bouncer.start()
        yield bouncer
    finally:
        bouncer.kill()
        shutil.rmtree(folder, ignore_errors=True)
