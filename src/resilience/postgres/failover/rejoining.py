"""Rejoining: a member whose history has parted comes back behind the primary, rewound or rebuilt."""

from __future__ import annotations

import json

from attrs import define

from resilience.concurrency import in_thread
from resilience.folders import write_durably
from resilience.model.errors import NotFollowing, Refused, Unavailable
from resilience.model.failover import Divergence
from resilience.postgres.client import Dsn
from resilience.postgres.isolation import READY_SECONDS, Isolation

from . import following
from .conninfo import quoted
from .control import Control
from .fence_mark import mark_on
from .looking import Look
from .members import Members
from .outside import LOCATIONS, Outside, mapping
from .promoting import checkpoint
from .rewinding import ENDED, Rewind
from .server import LocalServer
from .workshop import Workshop

OPERATION = "rejoin"
_KEEPS_WAL = {"wal_keep_size": "1000000GB"}
"""pg_rewind reads WAL from the last checkpoint that both histories share, which an end of recovery would remove."""
SIGNAL = "standby.signal"
# What would have a standby receive from elsewhere, or stop on the way (20.5.5, 20.6.3).
_REPLACED = (b"primary_conninfo", b"primary_slot_name", b"recovery_target", b"shared_preload_libraries = 'resilience_")


@define(eq=False)
class Rejoin:
    """Brings one member of a group back; `restore_command` fetches WAL from the archive that no server has any more."""

    members: Members
    epoch: int
    seconds: float
    restore_command: str = ""

    async def rejoin(self, found: Divergence) -> None:
        """Bring a member back in the way that was found; see `Promoter.rejoin`."""
        name, primary = found.member, found.primary
        if found.way == "none":
            raise Refused(f"nobody can tell how: {found.why}", operation=OPERATION, subject=name)
        upstream = await self.members.look(primary, operation=OPERATION)
        if upstream.standby:
            raise Refused(f"{primary} is a standby itself", operation=OPERATION, subject=name)
        await self.members.stamp(primary, upstream, epoch=self.epoch, operation=OPERATION)
        if await self._follows(found, upstream):
            return
        server = self._server(name)
        await in_thread(mark_on(server.data, server.account).check, self.epoch)
        await self._stop(found, server)
        await checkpoint(self.members, primary, seconds=self.seconds)
        slot = self._slot(name)
        if slot:
            await following.ensure_slot(self.members, primary, slot)
        if found.way != "follow":
            await self._replace(found, server)
        await self._begin(name, primary, server, slot)
        await following.until_streaming(self.members, name, primary, upstream, seconds=self.seconds)
        await self._drop_old_slots(name)

    async def _follows(self, found: Divergence, upstream: Look) -> bool:
        """Tell whether the member runs as a standby that can follow as it is; then it does."""
        try:
            look = await self.members.look(found.member, operation=OPERATION)
        except Unavailable:
            return False
        if not look.standby:
            text, hint = "it takes writes", "fence it first"
            raise Refused(text, operation=OPERATION, subject=found.member, hint=hint)
        try:
            following.check(found.member, found.primary, look, upstream)
        except NotFollowing:
            return False
        await following.follow(self.members, found.member, found.primary, epoch=self.epoch, seconds=self.seconds)
        return True

    async def _stop(self, found: Divergence, server: LocalServer) -> None:
        """Stop a standby that has parted; one that takes writes is for a fencer to stop."""
        if not await server.running():
            return
        try:
            await self.members.look(found.member, operation=OPERATION)
        except Unavailable as error:
            text = f"it runs, and whether it takes writes nobody can tell: {error.what}"
            raise Refused(text, operation=OPERATION, subject=found.member, hint="fence it first") from error
        await server.stop(seconds=self.seconds)

    async def _replace(self, found: Divergence, server: LocalServer) -> None:
        """Make its data the primary's, in the way that was found and in no other: a fresh base loses what it has."""
        workshop = Workshop(server)
        if found.way == "rebuild":
            await self._rebuild(found, server, workshop)
        elif await in_thread(workshop.unfinished):
            raise self._cannot(found.member, "it was being rewound or rebuilt, and that was not finished")
        else:
            await self._rewind(found, server, workshop)

    async def _rewind(self, found: Divergence, server: LocalServer, workshop: Workshop) -> None:
        if (await Control.read(server)).state not in ENDED:
            await self._recover(found.member, server)
        rewind = Rewind(server=server, source=self.members[found.primary], restore_command=self.restore_command)
        if why := await rewind.tried():
            raise self._cannot(found.member, why)
        await in_thread(workshop.open)
        await rewind.done()

    def _cannot(self, name: str, why: str) -> Refused:
        hint = "plan a failback again: it says that a fresh base is needed, and what is given up with it"
        return Refused(f"it cannot be rewound: {why}", operation=OPERATION, subject=name, hint=hint)

    async def _recover(self, name: str, server: LocalServer) -> None:
        """Let a server that crashed come to its end, where nobody can reach it."""
        await server.clear()
        isolation = Isolation(
            tools=server.tools,
            data=server.data,
            account=server.account,
            role=self.members[name].dsn.parameters.get("user", "postgres"),
            database="postgres",
        )
        async with isolation.run(_KEEPS_WAL) as isolated:
            await isolated.ready("select true", seconds=READY_SECONDS)

    async def _rebuild(self, found: Divergence, server: LocalServer, workshop: Workshop) -> None:
        """Replace its data by a fresh base of the primary, and what it has elsewhere too."""
        primary = found.primary
        row = await self.members.links[primary].row(LOCATIONS, seconds=self.members.seconds, operation=OPERATION)
        there: dict[str, str] = json.loads(row["places"])
        own, major = await in_thread(workshop.outside), await server.tools.major("pg_basebackup")
        others = [each.server for each in self.members.members if each.server and each.name != found.member]
        taken = {folder for each in others for folder in (await in_thread(Outside.of, each.data)).folders}
        here = await in_thread(own.joined_by, there, major=major, taken=taken, subject=found.member)
        await in_thread(workshop.open)
        await in_thread(workshop.empty, here, major=major)
        arguments = ["-D", str(server.data), "-d", str(self._source(primary)), "-c", "fast", "-X", "stream"]
        arguments += [*mapping(there, here), *(["--waldir", str(here.wal)] if here.wal else [])]
        await self._run(server, "pg_basebackup", arguments, primary)

    async def _begin(self, name: str, primary: str, server: LocalServer, slot: str) -> None:
        """Make it a standby of the primary, and only then let it start."""
        workshop, account = Workshop(server), server.account
        upstream = self.members.upstream(name, primary, epoch=self.epoch)
        settings = _standby(await in_thread(workshop.settings), upstream.text(), slot, self.restore_command)

        def configure() -> None:
            write_durably(server.data / SIGNAL, b"", account)
            mark_on(server.data, account).lift(self.epoch, settings=settings)
            if workshop.unfinished():
                workshop.close()

        await in_thread(configure)
        await server.start(seconds=self.seconds)

    async def _run(self, server: LocalServer, program: str, arguments: list[str], primary: str) -> None:
        environment = self._source(primary).environment()
        async with server.tools.start(
            program, arguments, account=server.account, environment={**environment, "LC_ALL": "C"}
        ) as running:
            await running.succeed(Unavailable)

    def _source(self, primary: str) -> Dsn:
        return self.members[primary].dsn

    def _slot(self, name: str) -> str:
        """Name the slot to give it, if members of this group have slots."""
        used = [each.look for each in self.members.seen.values() if each.look and each.look.slot_name]
        return self.members[name].slot if used else ""

    async def _drop_old_slots(self, name: str) -> None:
        """Drop the slots that it kept for others as a primary: as a standby it would keep WAL for them for ever."""
        others = [member.slot for member in self.members.members if member.name != name]
        await self.members.links[name].row(_DROP, others, seconds=self.members.seconds, operation=OPERATION)

    def _server(self, name: str) -> LocalServer:
        server = self.members[name].server
        if server is None:
            text, hint = "nobody here controls its server", "rejoin it where it runs, or give it a server="
            raise Refused(text, operation=OPERATION, subject=name, hint=hint)
        return server


_DROP = """
select count(pg_drop_replication_slot(slot_name)) as dropped
from pg_replication_slots
where slot_type = 'physical' and not active and slot_name = any($1::text[])
"""


def _standby(settings: bytes, conninfo: str, slot: str, restore_command: str) -> bytes:
    """Return the lines of a standby's postgresql.auto.conf: its own, and where it receives from."""
    kept = [line for line in settings.splitlines() if not line.lstrip().startswith(_REPLACED)]
    added = [f"primary_conninfo = {quoted(conninfo)}", f"primary_slot_name = {quoted(slot)}"]
    if restore_command:
        added.append(f"restore_command = {quoted(restore_command)}")
    return b"\n".join([*kept, *(line.encode() for line in added)]) + b"\n"
