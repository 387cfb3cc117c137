"""PostgresPromoter: changes which server of a group takes writes (PostgreSQL 15 to 18, streaming replication)."""

from __future__ import annotations

import asyncio
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

from .failover import following, promoting
from .failover.beating import beat
from .failover.divergence import divergence
from .failover.floor import floor
from .failover.group import Seen, group_facts, primary_of
from .failover.members import Members
from .failover.rejoining import Rejoin
from .failover.settling import settle
from .members import PostgresMember


@define(eq=False)
class PostgresPromoter:
    """Fails over a group of servers that replicate by streaming; `name` is the group's.

    It keeps one connection a member: close it with `aclose()`, or use it in `async with`. A member that does not answer
    within `seconds` is one that cannot be reached. Settling and promoting may take `patience` seconds of replay.
    What has begun is brought to its end within these, also when it is cancelled.
    `restore_command` (PostgreSQL 20.5.4) fetches WAL from the archive for a member that is rewound or has been away.
    """

    system: ClassVar[str] = "postgresql"

    name: str = field(default="postgres", converter=checked_name)
    given: Sequence[PostgresMember] = field(alias="members", kw_only=True)
    seconds: float = field(default=2.0, kw_only=True)
    patience: float = field(default=60.0, kw_only=True)
    restore_command: str = field(default="", kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _members: Members = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._members = Members(tuple(self.given), self.seconds)

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
        await self._members.aclose()

    async def survey(self) -> GroupFacts:
        """Look at all members side by side; where the primary does not answer, have its standbys knock at its door."""
        at = self.clock()
        seen = await self._members.look_at_all(operation="survey")
        primary = primary_of(seen, self._members.primary)
        return await self._facts(seen, primary, at)

    async def beat(self, primary: str) -> None:
        """Leave a heartbeat for the standbys; see `Beating.beat`."""
        await beat(self._members.links[self._members[primary].name], seconds=self.seconds)

    async def prepare(self, candidate: str, *, epoch: int) -> None:  # noqa: ARG002  # nothing is changed
        """Write a checkpoint on the primary, and wait until the candidate has what it had; see `Promoter.prepare`."""
        seen = await self._members.look_at_all(operation="prepare")
        primary = primary_of(seen, self._members.primary)
        standby = self._members[candidate].name
        await promoting.checkpoint(self._members, primary, seconds=self.patience)
        wanted = (await self._members.look(primary, operation="prepare")).durable
        await following.until_applied(self._members, standby, wanted, seconds=self.patience)

    async def settle(self, *, epoch: int) -> GroupFacts:
        """Freeze all standbys side by side; see `Promoter.settle`."""
        seen = await finish(settle(self._members, epoch=epoch, seconds=self.patience))
        return await self._facts(seen, primary_of(seen, self._members.primary), self.clock(), probe=False)

    async def promote(self, order: PromotionOrder) -> Promoted:
        """Promote the candidate; see `Promoter.promote`."""
        return await finish(promoting.promote(self._members, order, seconds=self.patience))

    async def verify(self, primary: str, *, epoch: int) -> RecoveryPoint:
        """Write a mark and read it back; see `Promoter.verify`."""
        return await finish(promoting.verify(self._members, primary, epoch=epoch))

    async def follow(self, member: str, *, primary: str, epoch: int) -> None:
        """Have a standby receive from the primary; see `Promoter.follow`."""
        await finish(following.follow(self._members, member, primary, epoch=epoch, seconds=self.patience))

    async def divergence(self, member: str, *, primary: str) -> Divergence:
        """Find out how a member can come back; see `Promoter.divergence`."""
        return await divergence(self._members, member, primary, restore_command=self.restore_command)

    async def rejoin(self, found: Divergence, *, epoch: int) -> None:
        """Bring a member back behind the primary; see `Promoter.rejoin`."""
        rejoin = Rejoin(self._members, epoch=epoch, seconds=self.patience, restore_command=self.restore_command)
        await finish(rejoin.rejoin(found))

    async def require(self, primary: str, *, members: Sequence[str], needed: int, epoch: int) -> None:
        """Set whom the primary waits for; see `Promoter.require`."""
        await finish(promoting.require(self._members, primary, members, needed, epoch=epoch))

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """Return what promotion takes at least; see `Promoter.floor`."""
        return floor(await self._members.look_at_all(operation="survey"))

    async def _facts(self, seen: Sequence[Seen], primary: str, at: datetime, *, probe: bool = True) -> GroupFacts:
        members = self._members
        members.primary = primary
        silent = any(each.member.name == primary and each.look is None for each in seen)
        standbys = [
            each.member.name for each in seen if each.look and each.look.standby and primary in each.look.sources
        ]
        probes: dict[str, bool | None] = {}
        if probe and silent:
            answers = await asyncio.gather(*(members.probe(name, primary) for name in standbys))
            probes = dict(zip(standbys, answers, strict=True))
            # Who receives has perhaps received something meanwhile.
            receiving = [each.member.name for each in seen if each.look and each.look.receiving]
            again = {each.member.name: each for each in await members.look_at_all(receiving, operation="survey")}
            seen = [again.get(each.member.name, each) for each in seen]
        return group_facts(seen, group=self.name, at=at, before=primary, probes=probes)
