"""The promoter, the routes and the fencers of a simulated group: they keep the promises, and fail when told.

Nothing in here is real. Every effect is watched before and after it: `SimulatedGroup.watch` may wait, or raise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from attrs import define, field

from resilience.model.errors import (
    FencedOff,
    FencingUnproven,
    NotFollowing,
    Refused,
    RouteMoved,
    TimedOut,
)
from resilience.model.failover import Divergence, PhaseFloor, Promoted, PromotionOrder
from resilience.model.groups import Fence, GroupFacts, RouteFacts
from resilience.model.positions import RecoveryPoint

from .groups import SimulatedGroup, SimulatedServer, position


@define
class SimulatedPromoter:
    """A Promoter of a simulated group."""

    world: SimulatedGroup
    system: str = "simulated"

    @property
    def name(self) -> str:
        """The group's."""
        return self.world.name

    @property
    def members(self) -> tuple[str, ...]:
        """See `primitives.Promoter`."""
        return tuple(self.world.servers)

    async def survey(self) -> GroupFacts:
        """See `primitives.Promoter`."""
        await self.world.watch("survey")
        return self.world.facts()

    async def prepare(self, candidate: str, *, epoch: int) -> None:
        """See `primitives.Promoter`."""
        await self._begin("prepare", candidate, epoch)
        self.world.stream(candidate)
        await self._end("prepare", candidate)

    async def settle(self, *, epoch: int) -> GroupFacts:
        """See `primitives.Promoter`."""
        await self.world.watch("before settle")
        for server in self.world.servers.values():
            if server.alive and server.reachable and server.role == "standby":
                self._own(server, epoch)
                server.upstream = ""
        await self._end("settle", "")
        return self.world.facts()

    async def promote(self, order: PromotionOrder) -> Promoted:
        """See `primitives.Promoter`."""
        if order.candidate is None:
            raise Refused("this group does not elect", operation="promote", subject=self.name)
        server = await self._begin("promote", order.candidate, order.epoch)
        for fence in order.fences:
            if fence.kind == "proven" and self.world.servers[fence.member].writable:
                raise FencingUnproven("it takes writes again", operation="promote", subject=fence.member)
        if server.role != "primary":
            server.role, server.upstream = "primary", ""
            server.forks.append(len(server.log))
            self.world.promotions.append(server.name)
            self.world.sync, self.world.needed = order.sync, order.sync_needed
        await self._end("promote", server.name)
        return Promoted(
            primary=server.name,
            epoch=order.epoch,
            instance=server.instance,
            point=RecoveryPoint(position=server.position),
            forked_at=position(len(server.forks) - 1, server.forks[-1]),
            at=self.world.clock(),
        )

    async def verify(self, primary: str, *, epoch: int) -> RecoveryPoint:
        """See `primitives.Promoter`."""
        server = await self._begin("verify", primary, epoch)
        if not self.world.write(primary, f"mark {epoch}"):
            raise TimedOut("the mark was not acknowledged", operation="verify", subject=primary)
        await self._end("verify", primary)
        return RecoveryPoint(position=server.position)

    async def follow(self, member: str, *, primary: str, epoch: int) -> None:
        """See `primitives.Promoter`."""
        server = await self._begin("follow", member, epoch)
        upstream = self.world.servers[primary]
        if upstream.log[: len(server.log)] != server.log:
            raise NotFollowing("it has what the primary has not", operation="follow", subject=member)
        server.upstream = primary
        self.world.stream(member)
        await self._end("follow", member)

    async def divergence(self, member: str, *, primary: str) -> Divergence:
        """See `primitives.Promoter`."""
        await self.world.watch(f"divergence {member}")
        server, upstream = self.world.servers[member], self.world.reach(primary)
        common = len([1 for mine, theirs in zip(server.log, upstream.log, strict=False) if mine == theirs])
        lost = len(server.log) - common
        return Divergence(
            member=member,
            primary=primary,
            way="rewind" if lost else "follow",
            end=server.position,
            lost=lost,
            why=f"it has {lost} writes that {primary} has not" if lost else f"{primary} has all it has",
        )

    async def rejoin(self, found: Divergence, *, epoch: int) -> None:
        """See `primitives.Promoter`."""
        await self.world.watch(f"before rejoin {found.member}")
        server, upstream = self.world.servers[found.member], self.world.reach(found.primary)
        self._own(server, epoch)
        server.role, server.upstream = "standby", upstream.name
        server.log, server.forks = list(upstream.log), list(upstream.forks)
        server.alive, server.stopped, server.starts = True, False, server.starts + 1
        await self._end("rejoin", found.member)

    async def require(self, primary: str, *, members: Sequence[str], needed: int, epoch: int) -> None:
        """See `primitives.Promoter`."""
        await self._begin("require", primary, epoch)
        self.world.sync, self.world.needed = tuple(members), needed
        await self._end("require", primary)

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """See `primitives.Promoter`."""
        return (PhaseFloor(phase="promotion", seconds=0.0, why="nothing is simulated faster"),)

    async def _begin(self, what: str, name: str, epoch: int) -> SimulatedServer:
        await self.world.watch(f"before {what} {name}")
        return self._own(self.world.reach(name), epoch)

    async def _end(self, what: str, name: str) -> None:
        effect = f"{what} {name}".strip()
        self.world.noted(effect)
        await self.world.watch(f"after {effect}")

    def _own(self, server: SimulatedServer, epoch: int) -> SimulatedServer:
        if epoch < server.epoch:
            raise FencedOff(f"epoch {server.epoch} has begun", operation="promote", subject=server.name)
        server.epoch = epoch
        return server


@define
class SimulatedSwitch:
    """A TrafficSwitch of a simulated group."""

    world: SimulatedGroup
    to: str | None
    name: str = "pool"
    system: str = "simulated"
    held: bool = False
    version: int = 1
    switches: list[str] = field(factory=list)
    _going: asyncio.Event = field(factory=asyncio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._going.set()

    async def survey(self) -> RouteFacts:
        """See `primitives.TrafficSwitch`."""
        await self.world.watch(f"survey {self.name}")
        return self._facts()

    async def switch(self, to: str | None, *, expected: str) -> RouteFacts:
        """See `primitives.TrafficSwitch`."""
        if to is not None and to not in self.world.servers:
            raise ValueError(f"{to} is no member that this route leads to")
        word = f"hold {self.name}" if to is None else f"switch {self.name} {to}"
        await self.world.watch(f"before {word}")
        there = to is not None and self.to == to and not self.held
        if not there:
            if expected != str(self.version):
                raise RouteMoved("somebody else has changed it", operation="switch", subject=self.name)
            self._lead(to)
            self.world.noted(word)
        await self.world.watch(f"after {word}")
        facts = self._facts()
        if to is not None and not facts.instance:
            raise TimedOut("no connection has reached a server", operation="switch", subject=self.name)
        return facts

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """See `primitives.TrafficSwitch`."""
        return (PhaseFloor(phase="propagation", seconds=0.0, why=f"{self.name}: nothing is faster"),)

    async def client(self) -> str:
        """Take the route as a client does: wait while it holds, then return the instance that took a write."""
        await self._going.wait()
        server = self.world.servers[self.to or ""]
        self.world.write(server.name, f"by a client of {self.name}")
        return server.instance

    def _lead(self, to: str | None) -> None:
        self.held = to is None
        if to is None:
            self._going.clear()
            return
        self.version += self.to != to
        self.to = to
        self.switches.append(to)
        self._going.set()

    def _facts(self) -> RouteFacts:
        server = self.world.servers.get(self.to or "")
        reached = server is not None and server.alive and not server.fenced and not self.held
        return RouteFacts(
            route=self.name,
            to=self.to,
            version=str(self.version),
            held=self.held,
            instance=server.instance if server is not None and reached else "",
            writable=server.writable if server is not None and reached else None,
        )


@define
class SimulatedFencer:
    """A Fencer of a simulated group; it proves nothing of the members in `beyond`."""

    world: SimulatedGroup
    members: tuple[str, ...]
    beyond: set[str] = field(factory=set)

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        """See `primitives.Fencer`."""
        await self.world.watch(f"before fence {member}")
        if member in self.beyond or member not in self.members:
            raise FencingUnproven("its machine does not answer", operation="fence", subject=member)
        server = self.world.servers[member]
        if epoch < server.epoch:
            raise FencedOff(f"epoch {server.epoch} has begun", operation="fence", subject=member)
        if clean and server.alive:
            for name in self.world.servers:
                self.world.stream(name)
        server.stopped = server.stopped or server.alive
        server.alive, server.fenced, server.epoch = False, True, epoch
        self.world.noted(f"fence {member}")
        await self.world.watch(f"after fence {member}")
        end = server.position if clean else None
        at = self.world.clock()
        return Fence(member=member, kind="proven", epoch=epoch, at=at, end=end, evidence="its process is gone")

    async def lift(self, member: str, *, epoch: int) -> None:
        """See `primitives.Fencer`."""
        await self.world.watch(f"before lift {member}")
        server = self.world.servers[member]
        if epoch < server.epoch:
            raise FencedOff(f"epoch {server.epoch} has begun", operation="lift", subject=member)
        server.fenced, server.epoch = False, epoch
        if server.stopped and not server.alive:
            server.alive, server.starts = True, server.starts + 1
        server.stopped = False
        self.world.noted(f"lift {member}")
        await self.world.watch(f"after lift {member}")
