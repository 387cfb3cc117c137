"""The processes of a PostgreSQL server on this machine.

Each of them works in its data directory, also one whose postmaster has died.
"""

from __future__ import annotations

from pathlib import Path

from resilience import processes as known
from resilience.model.errors import Refused
from resilience.processes import Process, look, reap, send, works_in

__all__ = ["PROGRAM", "Process", "look", "postmaster", "processes", "reap", "send", "unseen"]

PROGRAM = "postgres"


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
    if found is None or found.state in "ZX" or not works_in(pid, data, PROGRAM):
        return None
    return found


def processes(data: Path) -> list[Process]:
    """Return all processes that work in a data directory, the postmaster and those that have outlived theirs."""
    return known.processes(data, PROGRAM)


def unseen(data: Path) -> str:
    """Say why a server may work on a data directory though no process is seen there; empty if nothing says so.

    Its own postmaster.pid tells: the server that wrote it knew the directory by another path, or was process 1 of a
    container. Then it ran where we cannot look, and may still (src/include/utils/pidfile.h).
    """
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    if lines[:1] == ["1"]:
        return "its postmaster.pid is of process 1 of a container, whose processes we do not see"
    known_as = lines[1] if len(lines) > 1 else ""
    try:
        same = not known_as or data.samefile(known_as)
    except OSError:
        same = False
    return "" if same else f"its postmaster.pid is of a server that knows it as {known_as}: we do not see its processes"
