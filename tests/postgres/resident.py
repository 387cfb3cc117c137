"""What the tests of the commands share: a Python that servers can run, configurations, and residents that are ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from attrs import define, field

from resilience.commands import archive_command, restore_command
from resilience.commands.resident import LOCK
from resilience.postgres.tools import tied
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

PACKAGES = ("attr", "attrs", "backports.zstd", "msgspec", "tenacity", "resilience")
UNWANTED = ("site-packages", "test", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "config-*")
SEGMENT = 1 << 20
WAIT_SECONDS = 60.0


def reachable_python(folder: Path) -> str:
    """Return a Python with this package that the account servers run as can reach: ours, or a copy of it."""
    ours = Path(sys.executable)
    ways = [ours, ours.resolve(), Path(sysconfig.get_path("purelib")), Path(__file__)]
    if os.geteuid() != 0 or all(each.stat().st_mode & 0o001 for way in ways for each in way.parents):
        return sys.executable
    wrapper = folder / "python"
    if not wrapper.exists():
        _copy_python(folder)
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={folder}/lib exec {folder}/bin/python "$@"\n')
        wrapper.chmod(0o755)
    return str(wrapper)


def _copy_python(folder: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    library = folder / "lib" / version
    shutil.copytree(Path(sysconfig.get_path("stdlib")), library, ignore=shutil.ignore_patterns(*UNWANTED))
    for shared in (base / "lib").glob("libpython*.so*"):
        shutil.copy(shared, folder / "lib")
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), folder / "bin/python")
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, library / "site-packages" / name.replace(".", "/"))


@define
class Commands:
    """The commands of one server, with an archive in a folder: `lines` go into its postgresql.conf."""

    python: str
    home: Path
    server: TestServer
    more: str = ""
    archive: Path = field(init=False)
    config: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.archive = owned_folder(self.home / "it's the archive")
        self.config = self.home / "50% of 'it'.toml"
        self.write(self.more)

    def write(self, more: str = "") -> None:
        """Write the configuration; `more` are further lines of it."""
        self.config.write_text(f'target = "orders"\ndirectory = "{self.archive}"\nidle = 30\npatience = 1\n{more}\n')
        self.config.chmod(0o644)

    @property
    def archive_command(self) -> str:
        """The line for postgresql.conf."""
        return archive_command(self.config, python=self.python)

    @property
    def restore_command(self) -> str:
        """The line for postgresql.conf."""
        return restore_command(self.config, python=self.python)

    @property
    def spool(self) -> Path:
        """Where the spool of the server is, unless it was configured otherwise."""
        return self.server.data / "pg_wal/resilience"

    def configure(self, *lines: str) -> None:
        """Add lines to the server's configuration; it may have to be restarted."""
        with (self.server.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as the server would, in its data directory."""
        command = tied([self.python, "-I", "-m", "resilience.commands.wal", str(self.config), *arguments], account())
        return subprocess.run(command, cwd=cwd or self.server.data, capture_output=True, text=True, check=False)

    def shell(self, line: str, *, f: str, p: str) -> subprocess.CompletedProcess[str]:
        """Run a line of postgresql.conf as the server would: unquoted, its `%` replaced, by a shell."""
        _, _, value = line.partition(" = ")
        text = value[1:-1].replace("''", "'").replace("\\\\", "\\")
        filled = text.replace("%%", "\0").replace("%f", f).replace("%p", p).replace("\0", "%")
        command = tied(["/bin/sh", "-c", filled], account())
        return subprocess.run(command, cwd=self.server.data, capture_output=True, text=True, check=False)

    def resident(self, *, spool: Path | None = None) -> int | None:
        """Return the process id of the resident, None if there is none."""
        with suppress(FileNotFoundError, ValueError):
            pid = int(((spool or self.spool) / LOCK).read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"resilience.commands.wal" in words and os.fsencode(self.config) in words:
                return pid
        return None

    def end(self, *, number: signal.Signals = signal.SIGKILL, spool: Path | None = None) -> None:
        """End the resident, if there is one, and wait until it is gone."""
        if (pid := self.resident(spool=spool)) is not None:
            os.kill(pid, number)
            until(lambda: self.resident(spool=spool) is None)

    def archived(self) -> int:
        """Return how many files the server has had archived."""
        return int(self.server.psql("select archived_count from pg_stat_archiver"))

    def switch(self, *, rows: int = 10) -> str:
        """Write something, finish the segment and return its name."""
        self.server.psql(f"insert into t select generate_series(1, {rows})")
        return self.server.psql("select pg_walfile_name(pg_switch_wal())")

    def caught_up(self) -> None:
        """Wait until everything that was finished is archived."""
        status = self.server.data / "pg_wal/archive_status"
        until(lambda: not list(status.glob("*.ready")))


def account():  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Return the account that servers run as."""
    return unprivileged()


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
