"""The processes of a server on this machine, from /proc: Linux only (proc(5)).

A server is known by the folder that its processes work in. Reading that, and sending signals, takes the server's own
account or root.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from resilience.model.errors import Refused, Unsupported

PROC = Path("/proc")
LOOK_AGAIN_SECONDS = 0.002
_GONE = (FileNotFoundError, ProcessLookupError)


@frozen
class Process:
    """A process: `pid` and `started` (clock ticks since boot) tell it from every other, also from a later one."""

    pid: int
    started: int
    parent: int
    state: str

    @property
    def alive(self) -> bool:
        """Whether it still runs: a zombie does not."""
        now = look(self.pid)
        return now is not None and now.started == self.started and now.state not in "ZX"

    @property
    def stopped(self) -> bool:
        """Whether it is stopped by a signal now."""
        now = look(self.pid)
        return now is not None and now.started == self.started and now.state == "T"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing if it has gone, also if another has its number by now. Raises Refused."""
        try:
            handle = os.pidfd_open(self.pid)
        except _GONE:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            text = f"process {self.pid} is another account's"
            raise Refused(text, operation="signal", hint="act as the server's account, or as root") from error
        finally:
            os.close(handle)


def look(pid: int) -> Process | None:
    """Look at a process; None if there is none. See proc(5), /proc/pid/stat."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except _GONE:
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return Process(pid, int(fields[19]), int(fields[1]), fields[0])


def processes(folder: Path, program: str) -> list[Process]:
    """Return all processes that work in a folder and whose program's name has `program` in it. Raises Unsupported."""
    if not PROC.is_dir():
        raise Unsupported("there is no /proc on this machine", operation="look", subject=str(folder))
    try:
        place = folder.stat()
    except OSError:
        return []
    # A fence looks several times: what evidently works elsewhere costs one question each.
    near = (look(pid) for pid in _pids() if not _elsewhere(pid, place))
    return [each for each in near if each and each.state not in "ZX" and works_in(each.pid, folder, program)]


def send(to: Iterable[Process], number: signal.Signals) -> None:
    """Send a signal to each; see `Process.send`."""
    for each in to:
        each.send(number)


def reap(those: Iterable[Process]) -> None:
    """Take note of the end of those that are our own children.

    Until then they are zombies, and a server that only asks whether there is such a process (PostgreSQL does) would not
    start in their folder. In a container everybody may be a child of ours.
    """
    for each in those:
        with suppress(ChildProcessError):
            os.waitpid(each.pid, os.WNOHANG)


def _pids() -> Iterator[int]:
    for name in os.listdir(PROC):  # noqa: PTH208  # a Path for each of hundreds takes longer than all the rest
        if name.isdecimal():
            yield int(name)


def _elsewhere(pid: int, place: os.stat_result) -> bool:
    """Tell whether a process has gone or works in another folder; False where we may not see it."""
    try:
        there = os.stat(f"{PROC}/{pid}/cwd")  # noqa: PTH116  # as above
    except PermissionError:
        return False
    except OSError:
        return True
    return (there.st_dev, there.st_ino) != (place.st_dev, place.st_ino)


def works_in(pid: int, folder: Path, program: str) -> bool:
    """Tell whether a process works in a folder, as a program of that name. Raises Refused if it may be, unseen."""
    try:
        return (PROC / str(pid) / "cwd").samefile(folder) and _runs(pid, program)
    except PermissionError as error:
        # Root needs CAP_SYS_PTRACE to look at another account's processes, and containers are not given it.
        if not _called(pid, program) or _account(pid) != folder.stat().st_uid:
            return False
        text = f"where process {pid} ({program}) works we may not see, so nobody can tell whether it works here"
        hint = "run this as the server's account, or give it CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE)"
        raise Refused(text, operation="look", subject=str(folder), hint=hint) from error
    except OSError:
        return False


def gone(*those: Process) -> Callable[[], Awaitable[bool]]:
    """Make a condition: none of these processes runs any more."""

    async def condition() -> bool:
        return not any(each.alive for each in those)

    return condition


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Look every few milliseconds until something is so; tell whether it came to that within `seconds`."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    return True


def kill_all(folder: Path, program: str, seconds: float) -> list[Process]:
    """Kill every process that works there, also one that is stopped, and wait; return those that would not die."""
    deadline = time.monotonic() + seconds
    seen: set[Process] = set()
    while (left := processes(folder, program)) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        seen.update(left)
        time.sleep(LOOK_AGAIN_SECONDS)
    reap(seen)
    return left


def _runs(pid: int, program: str) -> bool:
    """Tell whether a process is a program of that name, whatever link it was started by."""
    try:
        if program in (PROC / str(pid) / "comm").read_text(errors="replace"):
            return True
        return program in (PROC / str(pid) / "exe").readlink().name
    except OSError:
        return False


def _called(pid: int, program: str) -> bool:
    """Tell the same by what everybody may read."""
    with suppress(OSError):
        return any(program in (PROC / str(pid) / name).read_text(errors="replace") for name in ("comm", "cmdline"))
    return False


def _account(pid: int) -> int | None:
    """Return the account that a process acts as (proc(5), /proc/pid/status); None if it has gone."""
    try:
        text = (PROC / str(pid) / "status").read_text(errors="replace")
    except _GONE:
        return None
    return next((int(line.split()[2]) for line in text.splitlines() if line.startswith("Uid:")), None)
