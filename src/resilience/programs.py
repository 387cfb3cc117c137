"""Programs of the machine, such as servers: run as another account, ended with us, what they say last kept."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from attrs import define, field, frozen

from resilience.concurrency import finish
from resilience.model.errors import Refused, ResilienceError, Unavailable, Unsupported

KILL_AFTER_SECONDS = 10.0
_STDERR_LINES = 20
_LINE = 1 << 14

# Becomes another account and asks the kernel to interrupt the program when its parent dies, even by kill -9; see
# prctl(2), PR_SET_PDEATHSIG. The order matters: changing the account would forget the wish.
_TIED = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
ctypes.CDLL(None).prctl(1, signal.SIGINT)
os.getppid() == parent or sys.exit(1)
os.execv(sys.argv[4], sys.argv[4:])
"""


@frozen
class Account:
    """The operating-system account that a server runs as and that owns its files."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Account:
        """Look an account up by name. Raises Refused if there is none, or if it is root."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise Refused(f"there is no account {name!r} on this machine", operation="restore") from None
        return cls.numbered(entry.pw_uid)

    @classmethod
    def numbered(cls, uid: int) -> Account:
        """Look an account up by number. Raises Refused if it is root: no server of ours runs as root."""
        if uid == 0:
            raise Refused(
                "a server will not run as root",
                operation="restore",
                hint="name another account with owner=, or let one own the folder",
            )
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(str(uid), uid, uid)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


def tied(command: Sequence[str], account: Account | None) -> list[str]:
    """Return a command that runs as `account` and is stopped when this process dies without stopping it."""
    uid, gid = (account.uid, account.gid) if account is not None and os.geteuid() == 0 else (0, 0)
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), str(uid), str(gid), *command]


@asynccontextmanager
async def started(
    command: Sequence[str],
    *,
    stdin: bool | IO[bytes] = False,
    stdout: bool | IO[bytes] = False,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> AsyncIterator[Running]:
    """Run a program by its path, as `account` if we are root. On leaving it is terminated and waited for.

    It is also stopped when this process dies without leaving. `stdin` and `stdout` are pipes to here (True), files
    or pipes of the caller's, or nothing. Raises Unsupported if it cannot be run.
    """
    path = command[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *tied(command, account),
            stdin=_stream(stdin),
            stdout=_stream(stdout),
            stderr=asyncio.subprocess.PIPE,
            env=None if environment is None else dict(environment),
            cwd=cwd or "/",
            limit=4 << 20,
        )
    except OSError as error:
        raise Unsupported(f"{path} cannot be run: {error.strerror}") from error
    running = Running(Path(path).name, process)
    try:
        yield running
    finally:
        await finish(running.stop())


def _stream(wanted: bool | IO[bytes]) -> int | IO[bytes]:
    if isinstance(wanted, bool):
        return asyncio.subprocess.PIPE if wanted else asyncio.subprocess.DEVNULL
    return wanted


@define
class Running:
    """A program that runs; the last lines of its stderr are kept for messages."""

    program: str
    process: asyncio.subprocess.Process
    _stderr: deque[str] = field(factory=lambda: deque(maxlen=_STDERR_LINES))
    _reading: asyncio.Task[None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reading = asyncio.create_task(self._read_stderr())

    @property
    def said(self) -> str:
        """What it wrote to stderr last, on one line."""
        return " ".join(" ".join(self._stderr).split())

    async def read_all(self) -> bytes:
        """Read its output to the end."""
        return await self.stdout.read()

    @property
    def stdout(self) -> asyncio.StreamReader:
        """Its output; it must have been started with `stdout=True`."""
        if self.process.stdout is None:
            raise ValueError(f"{self.program} was started without stdout")
        return self.process.stdout

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """Its input; it must have been started with `stdin=True`."""
        if self.process.stdin is None:
            raise ValueError(f"{self.program} was started without stdin")
        return self.process.stdin

    async def wait(self) -> int:
        """Wait for its end and return its exit status."""
        status = await self.process.wait()
        await asyncio.wait([self._reading])
        return status

    async def succeed(self, kind: type[ResilienceError] = Unavailable) -> None:
        """Wait for its end; raise `kind` with what it said unless it exits with 0."""
        status = await self.wait()
        if status != 0:
            said = self.said or "it said nothing"
            raise kind(f"{self.program} failed with status {status}: {said}")

    async def stop(self, *, politely: signal.Signals = signal.SIGTERM, seconds: float = KILL_AFTER_SECONDS) -> None:
        """End it if it still runs: politely, then after `seconds` by force."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(politely)
            try:
                await asyncio.wait_for(self.process.wait(), seconds)
            except TimeoutError:
                self.process.kill()
        await self.wait()

    async def _read_stderr(self) -> None:
        if self.process.stderr is None:
            return
        rest = b""
        while chunk := await self.process.stderr.read(1 << 16):
            *lines, rest = (rest[-_LINE:] + chunk).split(b"\n")
            self._stderr.extend(line.decode(errors="replace") for line in lines)
        self._stderr.append(rest.decode(errors="replace"))
