"""How far a member's history has parted from the primary's, and how it can come back; nothing of it is changed."""

from __future__ import annotations

from attrs import evolve

from resilience.concurrency import in_thread
from resilience.model.errors import ResilienceError
from resilience.model.failover import Divergence
from resilience.postgres.lsn import position

from .control import Control, wal_end
from .following import parted
from .looking import Look
from .members import Members
from .rewinding import ENDED, Rewind
from .server import LocalServer
from .workshop import Workshop

OPERATION = "divergence"


async def divergence(members: Members, name: str, primary: str, *, restore_command: str = "") -> Divergence:
    """Find out how a member can come back behind the primary; see `Promoter.divergence`."""
    upstream = await members.look(primary, operation=OPERATION)
    server = members[name].server
    look: Look | None = None
    why = ""
    try:
        look = await members.look(name, operation=OPERATION)
    except ResilienceError as error:
        why = error.what
    if look is not None:
        return _of_look(name, primary, look, upstream)
    if server is None:
        text = f"it does not answer ({why}), and nobody here controls its server"
        return Divergence(member=name, primary=primary, way="none", why=text)
    if await in_thread(Workshop(server).unfinished):
        text = "it was being rewound or rebuilt, and that was not finished"
        return Divergence(member=name, primary=primary, way="rebuild", why=text)
    if await server.running():
        text = f"it runs and does not answer: {why}"
        return Divergence(member=name, primary=primary, way="none", why=text)
    found = await _of_files(name, primary, server, upstream)
    if found.way == "rewind" and (await Control.read(server)).state in ENDED:
        tried = await Rewind(server=server, source=members[primary], restore_command=restore_command).tried()
        if tried:
            return evolve(found, way="rebuild", why=f"{found.why}; it cannot be rewound: {tried}")
    return found


def _of_look(name: str, primary: str, look: Look, upstream: Look) -> Divergence:
    if look.lineage != upstream.lineage:
        text = f"it is another cluster than {primary}"
        return Divergence(member=name, primary=primary, way="rebuild", why=text)
    found = parted(
        name, primary, timeline=look.timeline, end=look.durable, history=upstream.branches, at=upstream.durable
    )
    return _possible(found, rewindable=look.rewindable)


async def _of_files(name: str, primary: str, server: LocalServer, upstream: Look) -> Divergence:
    """Judge a server that does not run by its files."""
    control = await Control.read(server)
    if control.lineage != upstream.lineage:
        text = f"it is another cluster than {primary}"
        return Divergence(member=name, primary=primary, way="rebuild", why=text)
    end = control.checkpoint.offset if control.state == "shut down" else await wal_end(server, control)
    if end is None:
        text = f"where its history ends nobody can tell ({control.state}): its WAL cannot be read"
        return Divergence(member=name, primary=primary, way="rebuild", end=None, why=text)
    found = parted(name, primary, timeline=control.timeline, end=end, history=upstream.branches, at=upstream.durable)
    if found.way == "follow" and control.state == "shut down" and found.forked_at == position(control.timeline, end):
        # The primary left before the record of the shutdown that begins here, so that record is one too many.
        text = f"it shut down at {found.end}, which {primary} has not received"
        found = evolve(found, way="rewind", why=text)
    return _possible(found, rewindable=control.rewindable)


def _possible(found: Divergence, *, rewindable: bool) -> Divergence:
    if found.way != "rewind" or rewindable:
        return found
    text = f"{found.why}; without checksums and wal_log_hints it cannot be rewound"
    return evolve(found, way="rebuild", why=text)
