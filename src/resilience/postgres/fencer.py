"""LocalFencer: stops PostgreSQL servers on this machine, proves that they are dead, and keeps them from starting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from attrs import field, frozen

from resilience.concurrency import finish, in_thread
from resilience.fencers import local
from resilience.model.errors import FencingUnproven
from resilience.model.groups import Fence
from resilience.model.moments import utc_now
from resilience.model.positions import Position

from .failover.control import ended
from .failover.fence_mark import mark_on, refuse_overridden
from .failover.identity import refuse_answering, refuse_other
from .failover.server import LocalServer
from .members import PostgresMember


@frozen
class LocalFencer:
    """Fences those of `members` that have a `server` on this machine.

    Proof is that no process works in the data directory and that none can start there: postgresql.auto.conf says so,
    whoever starts it (an init system, for one), until `lift`. What answered last at the member's dsn has to be the
    server in that directory; where nobody has heard any, connections have to be refused there in the end. A member
    that is fenced `clean` may take `patience` seconds to stop in order; any other is killed.
    """

    given: Sequence[PostgresMember] = field(alias="members")
    patience: float = field(default=60.0, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _epochs: local.Epochs = field(factory=local.Epochs, init=False, repr=False)

    @property
    def members(self) -> Collection[str]:
        """The members that it can fence."""
        return tuple(member.name for member in self.given if member.server is not None)

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        """Stop a member, prove it dead, and keep it so; see `Fencer.fence`. Once begun it is brought to its end."""
        server = self._server(member)
        self._epochs.check(member, epoch)
        return await finish(self._fence(member, server, epoch, clean))

    async def lift(self, member: str, *, epoch: int) -> None:
        """Undo a fence; a server that it stopped is started again. See `Fencer.lift`."""
        server = self._server(member)
        self._epochs.check(member, epoch)
        await finish(local.lift(server, mark_on(server.data, server.account), epoch=epoch))

    async def _fence(self, member: str, server: LocalServer, epoch: int, clean: bool) -> Fence:
        with local.proving(member):
            named = next(each for each in self.given if each.name == member)
            proven = await refuse_other(named, server, [each for each in self.given if each.name != member])
            await in_thread(refuse_overridden, server.data)

            async def stop() -> None:
                await server.stop(seconds=self.patience)

            def found() -> tuple[str, Position | None]:
                state, checkpoint = ended(server.data)
                # Stopped in order, it had handed all of its history to the standbys that received from it.
                return state, checkpoint if state == "shut down" else None

            mark = mark_on(server.data, server.account)
            fence = await local.fence(
                member, server, mark, epoch=epoch, stop=stop if clean else None, ended=found, clock=self.clock
            )
            if not proven:
                await refuse_answering(named)
            return fence

    def _server(self, member: str) -> LocalServer:
        for each in self.given:
            if each.name == member and each.server is not None:
                return each.server
        raise FencingUnproven("nobody here controls its server", operation="fence", subject=member)
