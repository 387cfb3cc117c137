"""LocalRedis: a Redis server that runs on this machine, to be stopped, started, killed and proven dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

from resilience.concurrency import in_thread
from resilience.model.errors import Interrupted, Refused, TimedOut
from resilience.processes import LOOK_AGAIN_SECONDS, kill_all, processes, reap, send
from resilience.programs import Account, started

PROGRAMS = ("redis", "valkey")
KILL_SECONDS = 10.0
STOP_SECONDS = 60.0
START_SECONDS = 30.0
LOG = "resilience.start.log"
_LOG_LINES = 5


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


def _words(words: Sequence[str]) -> Sequence[str]:
    return tuple(words)


@frozen
class LocalRedis:
    """A server on this machine: `data` is the folder it works in (`dir`), `config` the file it is started with.

    Every start has to read that file: a fence is a line in it. We must be root or the account that it runs as. It is
    started with `program`, as nobody's child, or by the command `start_with` (an init system's, for one), which must
    return when it has begun to start.
    """

    data: Path = field(converter=_absolute)
    config: Path = field(converter=_absolute)
    program: str | Path = field(default="redis-server", kw_only=True)
    start_with: Sequence[str] = field(default=(), converter=_words, kw_only=True)

    @property
    def account(self) -> Account | None:
        """The account that owns its files, if we are root; else None."""
        return Account.numbered(self.data.stat().st_uid) if os.geteuid() == 0 else None

    async def running(self) -> list[int]:
        """Return the ids of its processes; empty: it is dead. Raises Refused where that would prove nothing."""
        self._check("look")
        return await in_thread(self._pids)

    async def kill(self, *, seconds: float = KILL_SECONDS) -> None:
        """End all of its processes at once, and wait until there is none. Raises TimedOut if one does not die."""
        self._check("kill")
        if left := await in_thread(self.end, seconds):
            numbers = ", ".join(map(str, left))
            raise TimedOut(f"processes {numbers} do not die", operation="kill", subject=str(self.data))

    async def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """Have it shut down in order (SIGTERM): its replicas receive all it has, and it saves as it is configured to.

        Raises TimedOut if it did not end within so many seconds; it may end later.
        """
        self._check("stop")
        if left := await in_thread(self._stop, seconds):
            text = f"it has not stopped after {seconds:.0f} s (processes {', '.join(map(str, left))})"
            raise TimedOut(text, operation="stop", subject=str(self.data), hint="its log says what it waits for")

    async def start(self, *, seconds: float = START_SECONDS) -> None:
        """Start it, and wait until it runs; nothing happens if it does. It may still load its data then.

        Raises Interrupted with its last words.
        """
        if await self.running():
            return
        if self.start_with:
            command, account = list(self.start_with), None
        else:
            log = str(self.data / LOG)
            command = [str(self.program), str(self.config), "--daemonize", "yes", "--logfile", log]
            account = self.account
        async with started(command, account=account, cwd=self.data) as running:
            status = await running.wait()
            said = running.said
        if status != 0 or not await in_thread(self._appears, seconds):
            words = said or await in_thread(self._last_words) or "it said nothing"
            raise Interrupted(f"it did not start: {words}", operation="start", subject=str(self.data))

    def end(self, seconds: float = KILL_SECONDS) -> list[int]:
        """Kill every process that works in its folder and wait; return those that would not die. Blocking."""
        return [each.pid for program in PROGRAMS for each in kill_all(self.data, program, seconds)]

    def _pids(self) -> list[int]:
        return [each.pid for program in PROGRAMS for each in processes(self.data, program)]

    def _stop(self, seconds: float) -> list[int]:
        there = [each for program in PROGRAMS for each in processes(self.data, program)]
        send(there, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while (left := self._pids()) and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_SECONDS)
        reap(there)
        return left

    def _appears(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_AGAIN_SECONDS)
        return True

    def _last_words(self) -> str:
        try:
            return " | ".join((self.data / LOG).read_text(errors="replace").splitlines()[-_LOG_LINES:])
        except OSError:
            return ""

    def _check(self, operation: str) -> None:
        """Refuse where an empty answer would prove nothing."""
        if not self.data.is_dir() or not self.config.exists():
            text = "its folder or its configuration file is not there, so nobody can tell whether it runs"
            raise Refused(text, operation=operation, subject=str(self.data))
        if os.geteuid() not in (0, self.data.stat().st_uid):
            text = "we may not see the processes of the account that it runs as"
            hint = "run this as root or as that account"
            raise Refused(text, operation=operation, subject=str(self.data), hint=hint)
