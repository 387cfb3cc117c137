"""SentinelPromoter: changes which server of a group takes writes (Redis 6.2 to 8, Valkey; with Sentinels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Self

from attrs import define, field

from resilience.concurrency import finish
from resilience.model.failover import Divergence, PhaseFloor, Promoted, PromotionOrder
from resilience.model.groups import GroupFacts
from resilience.model.ids import checked_name
from resilience.model.moments import utc_now
from resilience.model.positions import RecoveryPoint

from .client import Url, parse_redis_urls
from .failover import correcting, electing, following, promoting
from .failover.floor import floor
from .failover.group import group_facts
from .failover.members import Members
from .failover.rejoining import rejoin
from .failover.sentinels import Sentinels
from .members import RedisMember
from .survey import SYSTEM


@define(eq=False)
class SentinelPromoter:
    """Fails over a group that `sentinels` (their URLs) know as `watched`; `name` is the group's.

    As long as a majority of the Sentinels answers they elect: they are told to fail over, and whom they elect is taken.
    Once they are gone a replica is promoted by hand, which needs a fence of the old master. The Sentinels that come
    back are corrected; see `correct`.

    It keeps one connection a server: close it with `aclose()`, or use it in `async with`. Who does not answer within
    `seconds` cannot be reached. An election, and a copy of all data to a replica, may take `patience` seconds.
    """

    system: ClassVar[str] = SYSTEM

    name: str = field(default="redis", converter=checked_name)
    given: Sequence[RedisMember] = field(alias="members", kw_only=True)
    sentinels: Sequence[Url] = field(converter=parse_redis_urls, kw_only=True)
    watched: str = field(default="mymaster", kw_only=True)
    seconds: float = field(default=2.0, kw_only=True)
    patience: float = field(default=60.0, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    known: Members = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.known = Members(
            tuple(self.given), Sentinels(tuple(self.sentinels), self.watched, self.seconds), self.seconds
        )

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the members."""
        return tuple(member.name for member in self.given)

    async def __aenter__(self) -> Self:
        """Return itself; nothing is opened before it is needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; they are opened again when they are needed."""
        await self.known.aclose()

    async def survey(self) -> GroupFacts:
        """Look at all members and ask all Sentinels, side by side; the newest configuration counts, not the first."""
        before, at = self.known.primary, self.clock()
        seen, council = await self.known.look_at_all(operation="survey")
        return group_facts(seen, council, group=self.name, at=at, before=before, known_as=self.known.places)

    async def prepare(self, candidate: str, *, epoch: int) -> None:  # noqa: ARG002  # it is put back in any epoch
        """Wait until the candidate has what the master had, and the Sentinels would elect it; see `Promoter.prepare`.

        Until the end of the switchover the replica-priority of the other replicas is 0. If this fails or is cancelled
        it is put back; `SentinelFencer.lift` does so too, where somebody died in the middle.
        """
        _, council = await self.known.look_at_all(operation="prepare")
        wanted = await self.known.look(self.known.primary, operation="prepare")
        await following.until_applied(self.known, candidate, wanted, seconds=self.patience, operation="prepare")
        if council.elects:
            try:
                await electing.steer(self.known, candidate, seconds=self.patience)
            except BaseException:
                await finish(correcting.release(self.known, operation="prepare"))
                raise

    async def settle(self, *, epoch: int) -> GroupFacts:
        """Have all replicas receive from nobody; see `Promoter.settle`. It is for promotions by hand."""
        await following.settle(self.known, epoch=epoch, seconds=self.seconds)
        return await self.survey()

    async def promote(self, order: PromotionOrder) -> Promoted:
        """Have the Sentinels elect, or promote the candidate by hand; see `Promoter.promote`."""
        return await finish(promoting.promote(self.known, order, seconds=self.patience))

    async def verify(self, primary: str, *, epoch: int) -> RecoveryPoint:
        """Write a key that expires within a minute and read it back; see `Promoter.verify`."""
        return await promoting.verify(self.known, primary, epoch=epoch)

    async def follow(self, member: str, *, primary: str, epoch: int) -> None:
        """Have a replica receive from the master; see `Promoter.follow`."""
        await following.follow(self.known, member, primary=primary, epoch=epoch, seconds=self.patience)

    async def divergence(self, member: str, *, primary: str) -> Divergence:
        """Find out how a member can come back; see `Promoter.divergence`."""
        return await following.divergence(self.known, member, primary)

    async def rejoin(self, found: Divergence, *, epoch: int) -> None:
        """Bring a member back behind the master; see `Promoter.rejoin`. Whatever only it has is lost with that."""
        await finish(rejoin(self.known, found, epoch=epoch, seconds=self.patience))

    async def require(self, primary: str, *, members: Sequence[str], needed: int, epoch: int) -> None:  # noqa: ARG002
        """Set min-replicas-to-write: writes are refused while fewer replicas are there. No write waits for one."""
        await promoting.require(self.known, primary, needed, epoch=epoch)

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """Return what detection, promotion and reconnection take at least; see `Promoter.floor`."""
        return floor(*await self.known.look_at_all(operation="survey"))

    async def correct(self, primary: str) -> str:
        """Have Sentinels that name another master than the group has agree with it, and put priorities back.

        It is done by `verify` and `rejoin` too; call it where Sentinels came back after a promotion by hand. Raises
        Refused if `primary` is no master, or if a majority has agreed on another that takes writes, TimedOut.
        """
        return await finish(correcting.correct(self.known, primary, seconds=self.patience, operation="correct"))
