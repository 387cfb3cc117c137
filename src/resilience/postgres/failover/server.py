"""LocalServer: a PostgreSQL server that runs on this machine, to be stopped, started, killed and proven dead."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen

from resilience import processes as known
from resilience.concurrency import in_thread
from resilience.model.errors import Interrupted, Refused, TimedOut, Unsupported
from resilience.postgres.processes import PROGRAM, postmaster, processes, unseen
from resilience.postgres.tools import Account, Tools
from resilience.postgres.untar import PG_CONTROL

START_SECONDS = 60.0
STOP_SECONDS = 60.0
KILL_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.002
_LOG_LINES = 5
# A server logs a primary_conninfo that has changed, with its password.
_SECRET = re.compile(r"(password)\s*=\s*('(?:[^'\\]|\\.|'')*'|[^\s\"']+)", re.IGNORECASE)
STARTED, PORT, _SOCKET, _STATUS = 2, 3, 4, 7
"""Which lines of postmaster.pid name these (src/include/utils/pidfile.h)."""
_LOG = "its log says why"
_READY = ("ready", "standby")


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


def _optional(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _commands(words: Sequence[str]) -> Sequence[str]:
    return tuple(words)


@frozen
class LocalServer:
    """A server on this machine, by its data directory; its programs are in `bin_dir`, or on the PATH.

    We have to see its processes: not those of another container, nor of another machine that has the same disk.
    We must be root or the account that it runs as. It is started with pg_ctl and writes its first words to `log`, or by
    the command `start_with` (an init system's, for one), which may return before it takes connections.
    """

    data: Path = field(converter=_absolute)
    bin_dir: Path | None = field(default=None, converter=_optional, kw_only=True)
    log: Path | None = field(default=None, converter=_optional, kw_only=True)
    start_with: Sequence[str] = field(default=(), converter=_commands, kw_only=True)
    answered: dict[tuple[str, str], tuple[str, str]] = field(factory=dict, init=False, eq=False, repr=False)
    """Which run of a server answered last at an address, and why that is not this one; see `identity`."""

    @property
    def tools(self) -> Tools:
        """Its programs."""
        return Tools.at(self.bin_dir)

    @property
    def account(self) -> Account | None:
        """The account that owns its files, if we are root; else None."""
        return Account.numbered(self.data.stat().st_uid) if os.geteuid() == 0 else None

    async def running(self) -> list[int]:
        """Return the ids of its processes, of the postmaster first; empty: it is dead. Raises Refused."""
        await self._check()
        pids = await in_thread(_pids, self.data)
        if not pids and (why := await in_thread(unseen, self.data)):
            hint = "run this where it runs; or, if it is dead for certain, remove postmaster.pid"
            raise Refused(why, operation="look", subject=str(self.data), hint=hint)
        return pids

    async def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """Stop it in order: clients are turned away, and standbys receive all it has written (19.5, SIGINT).

        Raises TimedOut if it did not end within so many seconds; it may end later.
        """
        await self._check()
        if left := await in_thread(_stop, self.data, seconds):
            raise TimedOut(
                f"it has not stopped after {seconds:.0f} s ({len(left)} processes are left)",
                operation="stop",
                subject=str(self.data),
                hint="a standby that is connected and receives nothing holds it up",
            )

    async def kill(self, *, seconds: float = KILL_SECONDS) -> None:
        """End all of its processes at once, and wait until there is none. Raises TimedOut if one does not die."""
        await self._check()
        if left := await in_thread(kill_all, self.data, seconds):
            numbers = ", ".join(map(str, left))
            raise TimedOut(
                f"processes {numbers} do not die, they may wait for a disk", operation="kill", subject=str(self.data)
            )

    async def start(self, *, seconds: float = START_SECONDS) -> None:
        """Start it, and wait until it takes connections or says why not; one that runs is only waited for.

        One that is about to stop is ended first: it would not take connections any more, for however long it takes.
        Raises Interrupted with its last words, TimedOut.
        """
        if await self.running():
            if not await in_thread(_stopping, self.data):
                await self._until_ready(seconds)
                return
            await self.kill()
        await self.clear()
        if self.start_with:
            await self._run(self.start_with[0], self.start_with[1:], "start")
            await self._until_ready(seconds)
            return
        log = self.log or self.data / "resilience.start.log"
        arguments = ["start", "-D", str(self.data), "-l", str(log), "-w", "-t", f"{seconds:.0f}", "-s"]
        async with self.tools.start("pg_ctl", arguments, account=self.account) as running:
            if await running.wait() != 0:
                words = f"{running.said} {await in_thread(_last_words, log)}".strip()
                raise Interrupted(f"it did not start: {words}", operation="start", subject=str(self.data))

    async def _until_ready(self, seconds: float) -> None:
        """Wait until it says that it takes connections. Raises Interrupted if it ends before that, TimedOut."""
        deadline, seen = time.monotonic() + seconds, False
        while (status := await in_thread(_status, self.data)) not in _READY:
            if status is None and seen and not await self.running():
                raise Interrupted("it ended as it started", operation="start", subject=str(self.data), hint=_LOG)
            seen = seen or status is not None
            if time.monotonic() > deadline:
                text = f"it takes no connections after {seconds:.0f} s"
                raise TimedOut(text, operation="start", subject=str(self.data), hint=_LOG)
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def clear(self) -> None:
        """Remove the lock files of one that died: its number may be another process's by now. Raises Refused."""
        await self._check()
        await in_thread(_clear, self.data)

    async def free(self) -> int | None:
        """Return the free bytes of the disk that holds its data; None if nobody can tell."""
        return await in_thread(_free, self.data)

    async def control(self) -> dict[str, str]:
        """Return what pg_controldata says, by its titles in English. Raises Unsupported."""
        async with self.tools.start(
            "pg_controldata", ["-D", str(self.data)], stdout=True, account=self.account, environment={"LC_ALL": "C"}
        ) as running:
            printed = (await running.read_all()).decode(errors="replace")
            await running.succeed(Unsupported)
        return {name: value.strip() for name, _, value in (line.partition(":") for line in printed.splitlines())}

    async def _run(self, program: str, arguments: Sequence[str], operation: str) -> None:
        async with Tools().start(program, arguments) as running:
            if await running.wait() != 0:
                raise Interrupted(f"{program}: {running.said}", operation=operation, subject=str(self.data))

    async def _check(self) -> None:
        """Refuse where an empty answer would prove nothing."""
        if not (self.data / PG_CONTROL).exists():
            raise Refused(
                "there is no cluster, so nobody can tell whether it runs", operation="look", subject=str(self.data)
            )
        if os.geteuid() not in (0, self.data.stat().st_uid):
            raise Refused(
                "we may not see the processes of the account that it runs as",
                operation="look",
                subject=str(self.data),
                hint="run this as root or as that account",
            )


def kill_all(data: Path, seconds: float) -> list[int]:
    """Kill every process that works there, also one that is stopped, and wait; return those that would not die."""
    return [each.pid for each in known.kill_all(data, PROGRAM, seconds)]


def _stop(data: Path, seconds: float) -> list[int]:
    """Ask the postmaster to stop, and wait until no process works there any more; return those that still do."""
    if (found := postmaster(data)) is not None:
        found.send(signal.SIGINT)
    deadline = time.monotonic() + seconds
    while (left := processes(data)) and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_SECONDS)
    return [each.pid for each in left]


def _stopping(data: Path) -> bool:
    """Tell whether a server is on its way down, by what its postmaster says (PM_STATUS_STOPPING)."""
    return _status(data) in ("stopping", None)  # it removes its file last


def _status(data: Path) -> str | None:
    """Return what its postmaster says of itself; empty: nothing yet, None: its file is not there."""
    with suppress(FileNotFoundError):
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
        return lines[_STATUS].strip() if len(lines) > _STATUS else ""
    return None


def _clear(data: Path) -> None:
    """Remove postmaster.pid and the lock of the socket that it names, if that is the same server's (miscinit.c)."""
    lock = data / "postmaster.pid"
    if processes(data) or not lock.exists():
        return
    lines = lock.read_text(errors="replace").splitlines()
    if len(lines) > _SOCKET and lines[_SOCKET]:
        socket = Path(lines[_SOCKET]) / f".s.PGSQL.{lines[PORT]}.lock"
        if socket.exists() and socket.read_text(errors="replace").split("\n", 1)[0] == lines[0]:
            socket.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


def _pids(data: Path) -> list[int]:
    return [each.pid for each in processes(data)]


def _free(data: Path) -> int | None:
    try:
        found = os.statvfs(data)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    return _SECRET.sub(r"\1=...", " | ".join(lines[-_LOG_LINES:]))
