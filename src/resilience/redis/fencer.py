"""LocalFencer stops Redis servers on this machine and proves them dead; SentinelFencer leaves it to the Sentinels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from attrs import field, frozen, validators

from resilience.concurrency import finish
from resilience.fencers import local
from resilience.model.errors import FencingUnproven, ResilienceError
from resilience.model.groups import Fence
from resilience.model.moments import utc_now
from resilience.model.positions import Position

from .failover.correcting import release
from .failover.fence_mark import mark_on
from .failover.group import position
from .failover.handing import HANDED_SECONDS, hand_over, let_write
from .failover.identity import refuse_answering, refuse_other
from .failover.server import LocalRedis
from .members import RedisMember
from .promoter import SentinelPromoter


@frozen
class LocalFencer:
    """Fences those of `members` that have a `server` on this machine.

    Proof is that no process works in its folder and that none can start there: its configuration file says so, whoever
    starts it, until `lift`. What answers at its url has to be the server in that folder, and nobody may answer there in
    the end. A member that is fenced `clean` first stops taking writes until its replicas have all it
    had, and may take `patience` seconds for that and to shut down; any other is killed.
    """

    given: Sequence[RedisMember] = field(alias="members")
    patience: float = field(default=30.0, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _epochs: local.Epochs = field(factory=local.Epochs, init=False, repr=False)

    @property
    def members(self) -> Collection[str]:
        """The members that it can fence."""
        return tuple(member.name for member in self.given if member.server is not None)

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        """Stop a member, prove it dead, and keep it so; see `Fencer.fence`. Once begun it is brought to its end."""
        named, server = self._server(member)
        self._epochs.check(member, epoch)

        async def stop() -> Position | None:
            look = await hand_over(self.given, named.name, seconds=self.patience)
            await server.stop(seconds=self.patience)
            return position(look.replid, look.offset)

        async def fenced() -> Fence:
            await refuse_other(named, server)
            proof = await local.fence(
                member,
                server,
                mark_on(server),
                epoch=epoch,
                stop=stop if clean else None,
                ended=lambda: ("dead", None),
                clock=self.clock,
            )
            await refuse_answering(named)
            return proof

        return await finish(fenced())

    async def lift(self, member: str, *, epoch: int) -> None:
        """Undo a fence; a server that it stopped is started again. See `Fencer.lift`."""
        _, server = self._server(member)
        self._epochs.check(member, epoch)
        await finish(local.lift(server, mark_on(server), epoch=epoch))

    def _server(self, member: str) -> tuple[RedisMember, LocalRedis]:
        for each in self.given:
            if each.name == member and each.server is not None:
                return each, each.server
        raise FencingUnproven("nobody here controls its server", operation="fence", subject=member)


@frozen
class SentinelFencer:
    """Leaves the fence to the Sentinels of a group, as long as they can fail over: the fence is `delegated`.

    They make the old master a replica as soon as they reach it. Until then it may go on acknowledging writes to clients
    that only it reaches, and those are lost: min-replicas-to-write bounds for how long. In a switchover it first takes
    no more writes until its replicas have all it had, for `pause` seconds at most (CLIENT PAUSE WRITE).
    """

    promoter: SentinelPromoter
    pause: float = field(default=30.0, kw_only=True, validator=validators.ge(2 * HANDED_SECONDS))
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _epochs: local.Epochs = field(factory=local.Epochs, init=False, repr=False)

    @property
    def members(self) -> Collection[str]:
        """All members; nobody where the Sentinels were last seen not to be able to elect."""
        council = self.promoter.known.council
        return () if council.opinions and not council.elects else self.promoter.members

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        """Look whether the Sentinels can do it; see `Fencer.fence`. Raises FencingUnproven if they cannot."""
        self._epochs.check(member, epoch)
        known = self.promoter.known
        seen, council = await known.look_at_all(operation="fence")
        if not council.elects:
            text = f"{len(council.answering)} of {council.size} Sentinels answer, and cannot fail over"
            raise FencingUnproven(text, operation="fence", subject=member, hint="fence it from its own machine")
        look = next((each.look for each in seen if each.name == member), None)
        bound = "nothing bounds what it acknowledges until then"
        settings = next((each.look for each in seen if each.look and each.look.master), look)
        if settings is not None and settings.needed:
            bound = f"cut off from its replicas it stops after {settings.lag} s (min-replicas-max-lag)"
        end = None
        if clean and look is not None and not look.master:
            end, bound = position(look.replid, look.offset), "it is one already"
        elif clean:
            end = await finish(self._handed_over(member))
            bound = f"it takes no writes for {self.pause:.0f} s, and its replicas have all it had"
        able = sum(1 for each in council.answering if each.able)
        evidence = f"{able} of {council.size} Sentinels can make it a replica, and do once they reach it; {bound}"
        return Fence(member=member, kind="delegated", epoch=epoch, at=self.clock(), end=end, evidence=evidence)

    async def lift(self, member: str, *, epoch: int) -> None:
        """Let a master take writes again that was paused, and the Sentinels elect whom they like; see `Fencer.lift`.

        What they have done stays.
        """
        self._epochs.check(member, epoch)
        await finish(let_write(self.promoter.known.links[member], seconds=self.promoter.seconds))
        await finish(release(self.promoter.known, operation="lift"))

    async def _handed_over(self, member: str) -> Position:
        try:
            look = await hand_over(self.promoter.given, member, seconds=self.pause)
        except ResilienceError as error:
            raise FencingUnproven(error.what, operation="fence", subject=member, hint=error.hint) from error
        return position(look.replid, look.offset)
