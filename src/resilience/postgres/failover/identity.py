"""That a member's dsn and its data directory are of one server: of another one nothing is proven."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from resilience.concurrency import in_thread
from resilience.fencers.mark import FENCE
from resilience.model.errors import FencingUnproven, Refused, ResilienceError
from resilience.postgres.instance import INSTANCE
from resilience.postgres.members import PostgresMember
from resilience.postgres.processes import processes
from resilience.postgres.untar import PG_CONTROL

from .links import Link
from .server import PORT, STARTED, LocalServer

OPERATION = "fence"
ANSWER_SECONDS = 0.25
"""How long a member may take to say who it is; one that hangs is fenced too, and looked for after that."""
START_SECONDS = 60
"""So much later than it wrote postmaster.pid a server may say that it started (MyStartTime, PgStartTime)."""
HINT = "name the data directory of the very server that the dsn reaches"
_WHO = f"select {INSTANCE} as instance, current_setting('port') as port"
_NOBODY = (errno.ECONNREFUSED, errno.ENOENT, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_PORT = re.compile(r'"(?:-p|--port=|-c" "port=|-cport=)(?:" ")?([0-9]+)"')


async def noted(member: PostgresMember, instance: str, port: str) -> str:
    """Compare what answers at a member's dsn with its data directory, and remember it on its `server`.

    Returns why it is another server; empty if it is that one, or if nobody can tell. One run of a server stays in its
    directory, so it is looked at once.
    """
    server = member.server
    if server is None:
        return ""
    seen = server.answered.get(_place(member))
    if seen is None or seen != (instance, ""):
        why = await in_thread(_another, server.data, instance, port)
        if why is None:
            return ""
        seen = server.answered[_place(member)] = (instance, why)
    return seen[1]


def last_noted(member: PostgresMember) -> str | None:
    """Return what came of that when it answered last; None if nobody has compared."""
    seen = None if member.server is None else member.server.answered.get(_place(member))
    return None if seen is None else seen[1]


async def refuse_other(member: PostgresMember, server: LocalServer, others: Sequence[PostgresMember]) -> bool:
    """Raise FencingUnproven if a member's data directory is of another server than its dsn; tell whether it is proven.

    What it was when it answered last holds, for one that hangs now. One that nobody has ever heard must at least be of
    the cluster that the others are of, and have been started there on the port that its dsn names.
    """
    if last_noted(member) is None:
        row = await _asked(member)
        if row is not None:
            await noted(member, *row)
    why = last_noted(member)
    if why is None:
        lineages = [row[0].partition("/")[0] for row in await asyncio.gather(*map(_asked, others)) if row]
        why = await in_thread(_unlike, server.data, lineages, _place(member)[1])
        if not why:
            return False
    if why:
        hint = f"nothing was touched: {HINT}"
        raise FencingUnproven(why, operation=OPERATION, subject=member.name, hint=hint)
    return True


async def refuse_answering(member: PostgresMember) -> None:
    """Raise FencingUnproven unless connections are refused at the dsn of a member that should be dead."""
    for place in member.dsn.addresses:
        if said := await _said(*place):
            text = f"no process works in its data directory, and yet a connection to {place[0]}:{place[1]} {said}"
            raise FencingUnproven(text, operation=OPERATION, subject=member.name, hint=HINT)


async def _asked(member: PostgresMember) -> tuple[str, str] | None:
    """Ask a member who it is; None if it does not answer, or does not let us in."""
    link = Link(member.dsn)
    try:
        row = await link.row(_WHO, seconds=ANSWER_SECONDS, operation=OPERATION)
    except ResilienceError:
        return None
    finally:
        link.drop()
    return row["instance"], row["port"]


def _place(member: PostgresMember) -> tuple[str, str]:
    host, port = (member.dsn.addresses or [("localhost", 5432)])[0]
    return host, str(port)


def _another(data: Path, instance: str, port: str) -> str | None:
    """Say why the server that works in a directory is not the one that says this; None if we may not see."""
    lineage, _, started = instance.partition("/")
    try:
        if _lineage(data) != lineage:
            return f"what answers is of cluster {lineage}, and {data} of another one"
        if not processes(data):
            return f"what answers does not work in {data}: no process does"
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
        late = int(started) / 1_000_000 - int(lines[STARTED])
        same = lines[PORT] == port and -1 <= late <= START_SECONDS
    except (FileNotFoundError, NotADirectoryError):
        return f"what answers does not work in {data}: there is no server"
    except (OSError, Refused, ValueError, IndexError, struct.error):
        return None
    return "" if same else f"what answers is another server than the one that works in {data}"


def _unlike(data: Path, lineages: Sequence[str], port: str) -> str:
    """Say what speaks against a directory being that of a server which nobody has heard."""
    try:
        if lineages and _lineage(data) not in lineages:
            return f"{data} is not of cluster {lineages[0]}"
        if (found := _last_port(data)) is None and not (data / FENCE).exists():
            return f"no server was ever started in {data}"
    except (OSError, ValueError, struct.error) as error:
        return f"nobody can tell whose {data} is: {error}"
    return (
        f"the server in {data} listened on port {found}, and the dsn names {port}"
        if found not in ("", None, port)
        else ""
    )


def _last_port(data: Path) -> str | None:
    """Return the port of the server that was started there last; empty if it is not written down, None without one."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    if len(lines) > PORT:
        return lines[PORT]
    try:
        given = _PORT.findall((data / "postmaster.opts").read_text(errors="replace"))
    except FileNotFoundError:
        return None
    return given[-1] if given else ""


def _lineage(data: Path) -> str:
    """Return the system identifier, which pg_control begins with."""
    with (data / PG_CONTROL).open("rb") as file:
        return str(struct.unpack("=Q", file.read(8))[0])


async def _said(host: str, port: int) -> str:
    """Say what comes of a connection; empty if it is refused, at all of its addresses."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if host.startswith("/"):
                return await _knocked(socket.AF_UNIX, f"{host}/.s.PGSQL.{port}")
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return next(filter(None, [await _knocked(info[0], info[4]) for info in infos]), "")
    except TimeoutError:
        return "hangs"
    except OSError as error:
        return f"fails: {error}"


async def _knocked(family: int, address: object) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as knocking:
        knocking.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(knocking, address)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in _NOBODY:
                return ""
            raise
    return "is taken"
