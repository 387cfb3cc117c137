"""What the tests of the commands share: a Python that servers can run, configurations, and residents that are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, field

from resilience.commands import archive_command, restore_command
from resilience.commands.resident import LOCK
from resilience.postgres.tools import tied
from resilience.postgres.wal.spool import config_line
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

SEGMENT = 1 << 20
WAIT_SECONDS = 60.0


@define
class Commands:
    """The commands of one server, with an archive in a folder: `lines` go into its postgresql.conf."""

    python: str
    home: Path
    server: TestServer
    spool_name: str = "pg_wal/resilience"
    archive: Path = field(init=False)
    config: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.archive = owned_folder(self.home / "it's the archive")
        self.config = self.home / "50% of 'it'.toml"
        self.write()

    def write(self, *more: str) -> None:
        """Write the configuration; `more` are further lines of it."""
        given = {line.partition(" = ")[0] for line in more}
        usual = {
            "target": '"orders"',
            "directory": f'"{self.archive}"',
            "spool": f'"{self.spool_name}"',
            "idle": "30",
            "patience": "1",
        }
        lines = [f"{name} = {value}" for name, value in usual.items() if name not in given]
        self.config.write_text("\n".join([*lines, *more]) + "\n")
        self.config.chmod(0o644)

    @property
    def archive_command(self) -> str:
        """The line for postgresql.conf."""
        return config_line("archive_command", archive_command(self.config, python=self.python))

    @property
    def restore_command(self) -> str:
        """The line for postgresql.conf."""
        return config_line("restore_command", restore_command(self.config, python=self.python))

    @property
    def spool(self) -> Path:
        """Where the spool is."""
        return self.server.data / self.spool_name

    @property
    def wal(self) -> Path:
        """The server's pg_wal."""
        return self.server.data / "pg_wal"

    def configure(self, *lines: str) -> None:
        """Add lines to the server's configuration; it may have to be restarted."""
        with (self.server.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as the server would, in its data directory."""
        command = tied(
            [self.python, "-I", "-m", "resilience.commands.wal", str(self.config), *arguments], unprivileged()
        )
        return subprocess.run(command, cwd=cwd or self.server.data, capture_output=True, text=True, check=False)

    def shell(self, line: str, *, f: str, p: str) -> subprocess.CompletedProcess[str]:
        """Run a line of postgresql.conf as the server would: unquoted, its `%` replaced, by a shell."""
        _, _, value = line.partition(" = ")
        text = value[1:-1].replace("''", "'").replace("\\\\", "\\")
        filled = text.replace("%%", "\0").replace("%f", f).replace("%p", p).replace("\0", "%")
        command = tied(["/bin/sh", "-c", filled], unprivileged())
        return subprocess.run(command, cwd=self.server.data, capture_output=True, text=True, check=False)

    def resident(self) -> int | None:
        """Return the process id of the resident, None if there is none."""
        with suppress(FileNotFoundError, ValueError):
            pid = int((self.spool / LOCK).read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"resilience.commands.wal" in words and os.fsencode(self.config) in words:
                return pid
        return None

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the resident, if there is one, and wait until it is gone."""
        if (pid := self.resident()) is not None:
            os.kill(pid, number)
            until(lambda: gone(pid))

    def push(self, path: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the archive_command for a file as the server would."""
        return self.shell(self.archive_command, f=Path(path).name, p=str(path))

    def fetch(self, name: str, path: str | Path = "pg_wal/RECOVERYXLOG") -> subprocess.CompletedProcess[str]:
        """Run the restore_command for a file as the server would."""
        return self.shell(self.restore_command, f=name, p=str(path))

    def switch(self, *, rows: int = 10) -> str:
        """Write something, finish the segment and return its name."""
        self.server.psql(f"insert into t select generate_series(1, {rows})")
        return self.server.psql("select pg_walfile_name(pg_switch_wal())")

    def caught_up(self) -> None:
        """Wait until everything that was finished is archived."""
        status = self.wal / "archive_status"
        until(lambda: not list(status.glob("*.ready")))


def gone(pid: int) -> bool:
    """Tell whether a process has ended so far that its sockets are closed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@contextmanager
def ended(*commands: Commands) -> Iterator[None]:
    """End the residents on leaving."""
    try:
        yield
    finally:
        for each in commands:
            each.end()
