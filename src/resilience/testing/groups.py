"""A simulated group of servers, in memory: who has what, who can be written to, and whether two ever could at once.

No server runs; `simulated` has the promoter, the routes and the fencers of such a group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from attrs import define, field

from resilience.model.errors import (
    Unreachable,
)
from resilience.model.groups import GroupFacts, MemberFacts, Role, Sample, Sighting, SyncSet
from resilience.model.json import Offset
from resilience.model.log import Branch
from resilience.model.positions import Position

Watch = Callable[[str], Awaitable[None]]
"""Awaited at every point where something could die: `before promote b`, `after promote b`; it may raise or wait."""
EPOCH = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


async def nobody_watches(_: str) -> None:
    """Let everything happen."""


@define
class SimulatedServer:
    """One simulated server: `log` is what it has, `forks` where each of its timelines began."""

    name: str
    role: Role = "standby"
    log: list[str] = field(factory=list)
    forks: list[int] = field(factory=lambda: [0])
    alive: bool = True
    reachable: bool = True
    fenced: bool = False
    stopped: bool = False
    upstream: str = ""
    lagging: bool = False
    epoch: int = 0
    starts: int = 1

    @property
    def writable(self) -> bool:
        """Whether somebody who reaches it could write."""
        return self.alive and self.role == "primary" and not self.fenced

    @property
    def instance(self) -> str:
        """Which run of it this is."""
        return f"{self.name}.{self.starts}"

    @property
    def position(self) -> Position:
        """How far it has come."""
        return position(len(self.forks), len(self.log))


@define
class SimulatedGroup:
    """The world: a primary, its standbys, and whoever must have a write before it is acknowledged.

    `watch` sees every effect. `promotions` and `two_writers` are what the tests are about.
    """

    servers: dict[str, SimulatedServer]
    name: str = "orders"
    sync: tuple[str, ...] = ()
    needed: int = 0
    watch: Watch = nobody_watches
    now: datetime = EPOCH
    acknowledged: list[str] = field(factory=list)
    promotions: list[str] = field(factory=list)
    effects: list[str] = field(factory=list)
    two_writers: list[tuple[str, ...]] = field(factory=list)

    @classmethod
    def of(cls, *names: str, sync: Sequence[str] = (), needed: int = 0) -> SimulatedGroup:
        """Make a group whose first member is the primary that all others receive from."""
        servers = {name: SimulatedServer(name, upstream=names[0]) for name in names}
        servers[names[0]].role, servers[names[0]].upstream = "primary", ""
        return cls(servers, sync=tuple(sync), needed=needed)

    def clock(self) -> datetime:
        """Tell the time: a millisecond has passed since it was told last."""
        self.now += timedelta(milliseconds=1)
        return self.now

    def writers(self) -> tuple[str, ...]:
        """Return everybody who could be written to."""
        return tuple(name for name, server in self.servers.items() if server.writable)

    def write(self, name: str, what: str) -> bool:
        """Write to a server, and return whether that was acknowledged."""
        server = self.servers[name]
        if not server.writable:
            return False
        server.log.append(what)
        self._replicate(server)
        has = [each for each in self.sync if each in self.servers and what in self.servers[each].log]
        if len(has) < self.needed:
            return False
        self.acknowledged.append(what)
        return True

    def kill(self, name: str) -> None:
        """Have a server die."""
        self.servers[name].alive = False

    def revive(self, name: str) -> None:
        """Start a server again as what it was, unless it is fenced."""
        server = self.servers[name]
        if not server.fenced and not server.alive:
            server.alive, server.starts = True, server.starts + 1
        self.noted("")

    def lost(self, name: str) -> list[str]:
        """Return what was acknowledged and a server does not have."""
        return [what for what in self.acknowledged if what not in self.servers[name].log]

    def noted(self, effect: str) -> None:
        """Note an effect, and whether two can be written to after it."""
        if effect:
            self.effects.append(effect)
        if len(self.writers()) > 1:
            self.two_writers.append(self.writers())

    def reach(self, name: str) -> SimulatedServer:
        """Return a server that answers; raises Unreachable."""
        server = self.servers[name]
        if not server.alive or not server.reachable:
            raise Unreachable("connection refused", operation="connect", subject=name)
        return server

    def sample(self) -> Sample:
        """Return what a recorder would have written down, while the primary lives."""
        facts = self.facts()
        primary = self.servers[facts.primary]
        return Sample(
            group=facts.group,
            at=facts.at,
            primary=primary.name,
            position=primary.position,
            sync=facts.sync,
            members=facts.members,
        )

    def stream(self, name: str) -> None:
        """Have a standby receive all that its upstream has."""
        server = self.servers[name]
        upstream = self.servers.get(server.upstream)
        if upstream is None or not upstream.alive or server.lagging or not server.alive:
            return
        if server.role == "standby" and upstream.log[: len(server.log)] == server.log:
            server.log, server.forks = list(upstream.log), list(upstream.forks)

    def _replicate(self, primary: SimulatedServer) -> None:
        for name, server in self.servers.items():
            if server.upstream == primary.name:
                self.stream(name)

    def facts(self) -> GroupFacts:
        """Return how the group is."""
        at = self.clock()
        for name in self.servers:
            self.stream(name)
        seen = tuple(self._seen(server) for server in self.servers.values())
        writes = [each.name for each in seen if each.role == "primary"]
        newest = max(self.servers.values(), key=lambda server: len(server.forks) if server.role == "primary" else 0)
        primary = writes[0] if len(writes) == 1 else newest.name
        recorded = primary not in writes
        start = position(len(self.servers[primary].forks), 0)
        sync = None if recorded else SyncSet(members=self.sync, needed=self.needed, at=at, since=start)
        return GroupFacts(
            group=self.name,
            system="simulated",
            at=at,
            members=seen,
            primary=primary,
            sync=sync,
            sightings=tuple(self._sightings(primary)),
        )

    def _seen(self, server: SimulatedServer) -> MemberFacts:
        if not server.alive or not server.reachable:
            return MemberFacts(name=server.name, problem="connection refused")
        return MemberFacts(
            name=server.name,
            role=server.role,
            instance=server.instance,
            lineage="1",
            version="1",
            branches=tuple(branches(server.forks)),
            durable=server.position,
            applied=server.position,
            writable=server.writable,
            upstream=server.upstream,
            receiving=bool(server.upstream) and self.servers[server.upstream].alive,
        )

    def _sightings(self, primary: str) -> list[Sighting]:
        server = self.servers[primary]
        alive = True if server.alive and server.reachable else (None if server.alive else False)
        text = "it answers" if alive else "connection refused"
        standbys = [name for name, each in self.servers.items() if each.alive and each.role == "standby"]
        return [Sighting(vantage=name, alive=alive, text=text) for name in ("the operator", *standbys)]


def position(timeline: int, offset: int) -> Position:
    """Return a place in a simulated history."""
    return Position(branch=str(timeline), offset=Offset(offset), text=f"0/{offset:X}")


def branches(forks: Sequence[int]) -> list[Branch]:
    """Return the timelines that began at these places."""
    first = [Branch(name="1")]
    return first + [
        Branch(name=str(number), parent=str(number - 1), forked_at=position(number - 1, fork))
        for number, fork in enumerate(forks[1:], 2)
    ]
