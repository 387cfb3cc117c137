"""Groups for tests of decisions: members at offsets of one or several timelines, as a survey would see them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from resilience.model.failover import FailoverPlan, FailoverPolicy, PhaseFloor
from resilience.model.groups import Fence, GroupFacts, MemberFacts, RouteFacts, Sample, Sighting, SyncSet
from resilience.model.log import Branch
from resilience.model.positions import Position
from resilience.planning.failover import plan_failover

T0 = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
ROUTE = RouteFacts(route="pgbouncer", to="a", version="1", instance="a-1", writable=True)
FIRST = (Branch(name="1"),)


def at(offset: int, branch: str = "1") -> Position:
    return Position(branch=branch, offset=offset, text=f"0/{offset:X}")


def moment(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def forked(*forks: tuple[str, int]) -> tuple[Branch, ...]:
    """`forked(("2", 300), ("3", 500))`: timeline 2 left 1 at 300, timeline 3 left 2 at 500."""
    branches = [Branch(name="1")]
    for name, offset in forks:
        parent = branches[-1].name
        branches.append(Branch(name=name, parent=parent, forked_at=at(offset, parent)))
    return tuple(branches)


def standby(
    name: str, offset: int, *, branches: tuple[Branch, ...] = FIRST, complete: float | None = None
) -> MemberFacts:
    return MemberFacts(
        name=name,
        role="standby",
        instance=f"{name}-1",
        lineage="7",
        version="17.2",
        branches=branches,
        durable=at(offset, branches[-1].name),
        applied=at(offset, branches[-1].name),
        complete_at=None if complete is None else moment(complete),
        writable=False,
        upstream="a",
        receiving=True,
    )


def primary(name: str = "a", offset: int = 0, *, branches: tuple[Branch, ...] = FIRST, now: float = 0) -> MemberFacts:
    return MemberFacts(
        name=name,
        role="primary",
        instance=f"{name}-1",
        lineage="7",
        version="17.2",
        branches=branches,
        durable=at(offset, branches[-1].name),
        applied=at(offset, branches[-1].name),
        complete_at=moment(now),
        writable=True,
    )


def gone(name: str = "a", problem: str = "connection refused") -> MemberFacts:
    return MemberFacts(name=name, problem=problem)


SEEN_DEAD = (
    Sighting(vantage="here", alive=False, text="connection refused"),
    Sighting(vantage="b", alive=False, text="its WAL receiver gets no connection; the primary does not answer it"),
)
ALIVE = (Sighting(vantage="here", alive=True, text="it answered in 0.002 s"),)


def group(
    *members: MemberFacts, sightings: Sequence[Sighting] = SEEN_DEAD, sync: SyncSet | None = None, owner: str = ""
) -> GroupFacts:
    return GroupFacts(
        group="orders",
        system="postgresql",
        at=T0,
        members=members,
        primary="a",
        sync=sync,
        sightings=tuple(sightings),
        owner=owner,
    )


def sync_of(*members: str, needed: int = 1, since: int | None = 0, seconds: float = 0, branch: str = "1") -> SyncSet:
    where = None if since is None else at(since, branch)
    return SyncSet(members=members, needed=needed, at=moment(seconds), since=where, recorded=True)


def sample(
    offset: int,
    *,
    sync: SyncSet | None = None,
    seconds: float = 0,
    members: Sequence[MemberFacts] = (),
    ahead: float = 0,
) -> Sample:
    branches = next((each.branches for each in members if each.name == "a"), FIRST)
    seen = members or (primary("a", offset, now=seconds + ahead),)
    return Sample(
        group="orders",
        at=moment(seconds),
        primary="a",
        position=at(offset, branches[-1].name),
        sync=sync,
        members=tuple(seen),
    )


def fence(seconds: float = 10, *, end: Position | None = None, kind: str = "proven") -> Fence:
    assert kind in ("proven", "delegated", "waived")
    return Fence(member="a", kind=kind, epoch=3, at=moment(seconds), end=end, evidence="its process is gone")  # type: ignore[arg-type]


def planned(
    facts: GroupFacts,
    *,
    policy: FailoverPolicy | None = None,
    recorded: Sample | None = None,
    to: str | None = None,
    kind: str = "failover",
    fenceable: Sequence[str] = ("a", "b", "c"),
    routes: Sequence[RouteFacts] = (ROUTE,),
    floor: Sequence[PhaseFloor] = (),
    now: float = 5,
) -> FailoverPlan:
    return plan_failover(
        facts,
        routes,
        policy or FailoverPolicy(),
        id="20261122T030005.000Z-5f3a9c",
        epoch=3,
        now=moment(now),
        kind=kind,  # type: ignore[arg-type]
        to=to,
        sample=recorded,
        fenceable=fenceable,
        floor=floor,
    )
