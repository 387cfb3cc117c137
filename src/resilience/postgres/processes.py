"""The processes of a server on this machine, from /proc: Linux only (proc(5)).

Every process of a PostgreSQL server works in its data directory, also one whose postmaster has died. Reading that, and
sending signals, takes the server's own account or root.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from resilience.model.errors import Refused, Unsupported

PROC = Path("/proc")
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


def postmaster(data: Path) -> Process | None:
    """Return the server that runs on a data directory; None if none does.

    What postmaster.pid says counts only if that process works there: the number may be another's by now.
    """
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    except PermissionError as error:
        text = "its postmaster.pid cannot be read"
        hint = "act as the server's account, or as root"
        raise Refused(text, operation="look", subject=str(data), hint=hint) from error
    found = look(pid)
    if found is None or found.state in "ZX" or not _works_in(pid, data):
        return None
    return found


def processes(data: Path) -> list[Process]:
    """Return all processes that work in a data directory, the postmaster and those that have outlived theirs."""
    if not PROC.is_dir():
        raise Unsupported("there is no /proc on this machine", operation="look", subject=str(data))
    return [each for each in map(look, _pids()) if each and each.state not in "ZX" and _works_in(each.pid, data)]


def send(to: Iterable[Process], number: signal.Signals) -> None:
    """Send a signal to each; see `Process.send`."""
    for each in to:
        each.send(number)


def reap(those: Iterable[Process]) -> None:
    """Take note of the end of those that are our own children.

    Until then they are zombies, and PostgreSQL, which only asks whether there is such a process, would not start on
    their data directory. In a container everybody may be a child of ours.
    """
    for each in those:
        with suppress(ChildProcessError):
            os.waitpid(each.pid, os.WNOHANG)


def _pids() -> Iterator[int]:
    for each in PROC.iterdir():
        if each.name.isdecimal():
            yield int(each.name)


def _works_in(pid: int, data: Path) -> bool:
    with suppress(OSError):
        return (PROC / str(pid) / "cwd").samefile(data) and "postgres" in _program(pid)
    return False


def _program(pid: int) -> str:
    return (PROC / str(pid) / "comm").read_text(errors="replace")
