"""LocalFencer: stops PostgreSQL servers on this machine, proves that they are dead, and keeps them from starting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from attrs import evolve, field, frozen

from resilience.concurrency import finish, in_thread
from resilience.model.errors import FencedOff, FencingUnproven, Refused, TimedOut, Unavailable
from resilience.model.groups import Fence
from resilience.model.moments import utc_now

from .failover.control import ended
from .failover.fence_mark import Fenced, FenceMark
from .failover.server import LocalServer
from .members import PostgresMember


@frozen
class LocalFencer:
    """Fences those of `members` that have a `server` on this machine.

    Proof is that no process works in the data directory and that none can start there: postgresql.auto.conf says so,
    whoever starts it (an init system, for one), until `lift`. A member that is fenced `clean` may take `patience`
    seconds to stop in order; any other is killed.
    """

    given: Sequence[PostgresMember] = field(alias="members")
    patience: float = field(default=60.0, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _seen: dict[str, int] = field(factory=dict, init=False, repr=False)

    @property
    def members(self) -> Collection[str]:
        """The members that it can fence."""
        return tuple(member.name for member in self.given if member.server is not None)

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        """Stop a member, prove it dead, and keep it so; see `Fencer.fence`. Once begun it is brought to its end."""
        server = self._server(member)
        self._check(member, epoch)
        return await finish(self._fence(member, server, epoch, clean))

    async def lift(self, member: str, *, epoch: int) -> None:
        """Undo a fence; a server that it stopped is started again. See `Fencer.lift`."""
        server = self._server(member)
        self._check(member, epoch)
        await finish(self._lift(server, epoch))

    async def _fence(self, member: str, server: LocalServer, epoch: int, clean: bool) -> Fence:
        mark = FenceMark(server.data, server.account)
        found = await in_thread(mark.check, epoch)
        running = bool(await self._running(member, server))
        known = found if found is not None and not found.lifted else Fenced(epoch=epoch)
        # A server that ran behind the mark has acknowledged what it liked.
        fenced = evolve(known, epoch=epoch, ran=known.ran or running, at=None if running else known.at)
        await in_thread(mark.set, fenced)
        if running:
            await self._end(member, server, clean)
        if await self._running(member, server):
            raise FencingUnproven("a process works in its data directory again", operation="fence", subject=member)
        fenced = evolve(fenced, at=fenced.at or self.clock())
        await in_thread(mark.set, fenced)
        state, checkpoint = await in_thread(ended, server.data)
        return Fence(
            member=member,
            kind="proven",
            epoch=epoch,
            at=fenced.at or self.clock(),
            # Stopped in order, it had handed all of its history to the standbys that received from it.
            end=checkpoint if clean and state == "shut down" else None,
            evidence=f"no process works in {server.data}, and none can start there ({state})",
        )

    async def _end(self, member: str, server: LocalServer, clean: bool) -> None:
        try:
            await (server.stop(seconds=self.patience) if clean else server.kill())
        except TimedOut as error:
            raise FencingUnproven(error.what, operation="fence", subject=member, hint=error.hint) from error

    async def _running(self, member: str, server: LocalServer) -> list[int]:
        try:
            return await server.running()
        except (Refused, Unavailable) as error:
            raise FencingUnproven(error.what, operation="fence", subject=member, hint=error.hint) from error

    async def _lift(self, server: LocalServer, epoch: int) -> None:
        mark = FenceMark(server.data, server.account)
        found = await in_thread(mark.check, epoch)
        if found is None or found.lifted:
            return
        # Started first in the mark's own words: who dies between finds that it is still to be started.
        if found.ran:
            await in_thread(mark.lift, epoch, keep=found)
            await server.start()
        await in_thread(mark.lift, epoch)

    def _server(self, member: str) -> LocalServer:
        for each in self.given:
            if each.name == member and each.server is not None:
                return each.server
        raise FencingUnproven("nobody here controls its server", operation="fence", subject=member)

    def _check(self, member: str, epoch: int) -> None:
        if epoch < self._seen.setdefault(member, epoch):
            text = f"epoch {epoch} is over: it has seen epoch {self._seen[member]}"
            raise FencedOff(text, operation="fence", subject=member)
        self._seen[member] = epoch
