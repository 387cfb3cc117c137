"""What the looks at all members and all Sentinels say about the group. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from attrs import frozen

from resilience.model.errors import ResilienceError, TimedOut, Unreachable
from resilience.model.findings import Finding, Severity, blocker
from resilience.model.groups import GroupFacts, MemberFacts, Sighting, SyncSet
from resilience.model.json import Json
from resilience.model.log import Branch
from resilience.model.positions import Position
from resilience.model.show import as_span
from resilience.redis.members import RedisMember
from resilience.redis.survey import OLDEST, SYSTEM

from .looking import UNNOTED, Look
from .sentinels import Address, Council, Opinion

FRESH_SECONDS = 2.0
"""What a master answered a Sentinel so short a time ago says that it lives."""

HASTY_MS = 1000
"""Sentinels ask a server every second (sentinel.c, SENTINEL_PING_PERIOD); with 800 ms, one new master in six that was
well was taken for dead, on Redis 7.0 and a busy machine."""


@frozen(kw_only=True)
class Seen:
    """One member as it was looked at; without a look, the error says why."""

    member: RedisMember
    look: Look | None = None
    error: ResilienceError | None = None
    seconds: float = 0.0
    free: int | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.member.name


def position(replid: str, offset: int) -> Position:
    """Return a place in the history of a replication ID."""
    return Position(branch=replid, offset=offset, text=str(offset))


def group_facts(
    seen: Sequence[Seen],
    council: Council,
    *,
    group: str,
    at: datetime,
    before: str = "",
    known_as: Mapping[Address, str] | None = None,
) -> GroupFacts:
    """Put the facts of a group together.

    `before` is who was master when somebody looked last, `known_as` the members by what hostnames were resolved to.
    """
    places = {**(known_as or {}), **{each.member.address: each.name for each in seen}}
    primary = primary_of(seen, council, places, before)
    look = next((each.look for each in seen if each.name == primary and each.look and each.look.master), None)
    return GroupFacts(
        group=group,
        system=SYSTEM,
        at=at,
        members=tuple(_member(each, seen, places) for each in seen),
        primary=primary,
        # What min-replicas-to-write asks for is that replicas are there, not that they have a write.
        sync=None if look is None else SyncSet(members=(), needed=0, at=look.now),
        sightings=tuple(_sightings(seen, council, primary, places)),
        owner="Redis Cluster" if any(each.look and each.look.mode == "cluster" for each in seen) else "",
        elects=council.elects,
        findings=tuple(_findings(seen, council, primary, places, look)),
        details=_details(council, places, look),
    )


def primary_of(seen: Sequence[Seen], council: Council, places: Mapping[Address, str], before: str = "") -> str:
    """Name the member that takes writes: of several the one that the Sentinels name, if none does whom they name.

    Where no Sentinel knows, it is whom the replicas receive from, or who it was before.
    """
    named = places.get(council.named, "") if council.named else ""
    chosen = places.get(council.chosen, "") if council.chosen else ""
    masters = [each.name for each in seen if each.look and each.look.master]
    replicas = {each.name for each in seen if each.look and not each.look.master}
    if chosen in masters or named in masters:
        return chosen if chosen in masters else named
    if masters:
        followed = [places.get(each.look.upstream, "") for each in seen if each.look and each.look.upstream]
        return max(masters, key=lambda name: (followed.count(name), name == before))
    if named and named not in replicas:
        return named
    upstreams = [places.get(each.look.upstream, "") for each in seen if each.look and each.look.upstream]
    lost = [name for name in upstreams if name and name not in replicas]
    return max(sorted(set(lost)), key=lost.count, default=before if before not in replicas else "")


def branches_of(look: Look, seen: Sequence[Seen]) -> tuple[Branch, ...]:
    """Return the history that a server is on, oldest first, put together from what all members know of it.

    A server remembers one replication ID before its own, and one that was copied anew none; so each fills the others'
    gaps, and all that are on one replication ID have the same history.
    """
    parents: dict[str, tuple[str, int]] = {}
    for each in seen:
        if each.look is not None and each.look.parent:
            parents.setdefault(each.look.replid, (each.look.parent, each.look.forked_at))
    name, found = look.replid, list[Branch]()
    while name in parents and all(name != each.name for each in found):
        parent, fork = parents[name]
        found.insert(0, Branch(name=name, parent=parent, forked_at=position(parent, fork)))
        name = parent
    return (Branch(name=name), *found)


def _member(each: Seen, seen: Sequence[Seen], places: Mapping[Address, str]) -> MemberFacts:
    look = each.look
    if look is None:
        return MemberFacts(name=each.name, problem=each.error.what if each.error else "nobody looked", free=each.free)
    here = position(look.replid, look.offset)
    return MemberFacts(
        name=each.name,
        role="primary" if look.master else "standby",
        instance=look.instance,
        version=look.version,
        branches=branches_of(look, seen),
        durable=here,
        applied=here,
        complete_at=look.now if look.master else None,
        writable=look.master and not look.loading,
        upstream=places.get(look.upstream, "") if look.upstream else "",
        receiving=look.receiving,
        free=each.free,
        findings=tuple(_member_findings(each, look)),
        details={
            "priority": look.priority,
            "link": look.link,
            "silent_seconds": look.silent,
            "frozen": look.frozen,
            "epoch": look.stamp.epoch,
            "replicas": look.replicas,
            "min_replicas_to_write": look.needed,
            "min_replicas_max_lag": look.lag,
        },
    )


def _member_findings(each: Seen, look: Look) -> Iterator[Finding]:
    checks: list[tuple[Severity, bool, str, str]] = [
        ("blocker", _major(look) < OLDEST, f"Redis {look.version} is too old", "upgrade it"),
        ("blocker", look.loading, "it is loading its data", "wait until it has"),
        (
            "blocker",
            not look.master and look.priority == 0 and look.stamp.priority is None,
            "its replica-priority is 0: it is never to be promoted",
            "CONFIG SET replica-priority 100",
        ),
        (
            "warning",
            not look.master and look.stamp.priority is not None,
            f"its replica-priority is 0 for as long as Sentinels may be wrong; it was {look.stamp.priority}",
            "let a failover finish, or resume it; SentinelPromoter.correct puts it back",
        ),
        (
            "warning",
            not look.stampable,
            f"{UNNOTED}: nothing on it keeps an older failover out, nor Sentinels from electing it by mistake",
            "do without to=, and without promotions by hand",
        ),
        ("warning", look.frozen, "it is frozen: it receives from nobody", "resume the failover that froze it"),
    ]
    for severity, wrong, text, hint in checks:
        if wrong:
            how = "blocker" if severity == "blocker" else "warning"
            yield Finding(
                severity="blocker" if how == "blocker" else "warning", subject=each.name, text=text, hint=hint
            )


def _major(look: Look) -> int:
    head = look.version.partition(".")[0]
    return int(head) if head.isdecimal() else 0


def _sightings(
    seen: Sequence[Seen], council: Council, primary: str, places: Mapping[Address, str]
) -> Iterator[Sighting]:
    """Yield what of the primary is seen from here, from its replicas, and from each Sentinel."""
    for each in seen:
        if each.name == primary:
            yield _from_here(each)
        elif each.look and each.look.upstream and places.get(each.look.upstream) == primary:
            yield _from_replica(each.name, each.look)
    for opinion in council.answering:
        if opinion.watches_named and opinion.named is not None and places.get(opinion.named) == primary:
            yield _from_sentinel(opinion)


def _from_here(each: Seen) -> Sighting:
    if each.look is not None:
        role = "" if each.look.master else ", as a replica"
        return Sighting(vantage="here", alive=True, text=f"it answered in {as_span(each.seconds)}{role}")
    text = each.error.what if each.error else "nobody looked"
    if isinstance(each.error, (Unreachable, TimedOut)):
        return Sighting(vantage="here", alive=False, text=text)
    return Sighting(vantage="here", alive=True, text=f"it answers, but does not let us in: {text}")


def _from_replica(name: str, look: Look) -> Sighting:
    if look.link == "up" and (look.silent or 0) <= FRESH_SECONDS:
        return Sighting(vantage=name, alive=True, text="its link to it is up")
    if look.link == "up":
        return Sighting(vantage=name, alive=None, text=f"its link has carried nothing for {as_span(look.silent)}")
    since = "" if look.silent is None else f" for {as_span(look.silent)}"
    return Sighting(vantage=name, alive=False, text=f"it has had no link to it{since}")


def _from_sentinel(opinion: Opinion) -> Sighting:
    vantage = f"Sentinel {opinion.sentinel}"
    if opinion.flags & {"s_down", "o_down"}:
        silent = as_span(opinion.number("last-ok-ping-reply") / 1000)
        agreed = ", and enough others agree" if "o_down" in opinion.flags else ""
        return Sighting(vantage=vantage, alive=False, text=f"it has not answered for {silent}{agreed}")
    if "disconnected" in opinion.flags or opinion.number("last-ping-sent") > FRESH_SECONDS * 1000:
        return Sighting(vantage=vantage, alive=None, text="it does not answer now")
    if opinion.number("last-ok-ping-reply") <= FRESH_SECONDS * 1000:
        silent = as_span(opinion.number("last-ok-ping-reply") / 1000)
        return Sighting(vantage=vantage, alive=True, text=f"it answered {silent} ago")
    return Sighting(vantage=vantage, alive=None, text="it has not heard from it lately")


def _findings(
    seen: Sequence[Seen], council: Council, primary: str, places: Mapping[Address, str], look: Look | None
) -> Iterator[Finding]:
    masters = [each.name for each in seen if each.look and each.look.master]
    if len(masters) > 1:
        both = " and ".join(masters)
        if council.elects:
            text = f"{both} take writes at once; the Sentinels name {primary} and make the others its replicas"
            lost = "what was written to those since is lost"
            yield Finding(severity="warning", subject="split brain", text=text, hint=lost)
        else:
            text = f"{both} take writes at once, and no majority of Sentinels says which is right"
            yield blocker("split brain", text, "fence all but one and rejoin them")
    yield from _of_sentinels(council, primary, places)
    if look is not None and look.needed == 0:
        text = "min-replicas-to-write is 0: a master that is cut off goes on acknowledging writes, which are lost"
        hint = "CONFIG SET min-replicas-to-write 1 bounds that to min-replicas-max-lag seconds"
        yield Finding(severity="warning", subject=primary, text=text, hint=hint)


def _of_sentinels(council: Council, primary: str, places: Mapping[Address, str]) -> Iterator[Finding]:
    for each in council.opinions:
        if each.error is not None:
            text = f"it does not say who is master: {each.error.what}"
            yield Finding(severity="warning", subject=f"Sentinel {each.sentinel}", text=text)
    for each in council.answering:
        named = places.get(each.named) if each.named else None
        if named != primary:
            said = named or ":".join(map(str, each.named or ()))
            text = f"it names {said}, of epoch {each.epoch}, and the master is {primary or 'nobody known'}"
            hint = "clients that trust it alone go wrong; it catches up by itself, or SentinelPromoter.correct tells it"
            yield Finding(severity="warning", subject=f"Sentinel {each.sentinel}", text=text, hint=hint)
        elif not each.able:
            yield Finding(severity="warning", subject=f"Sentinel {each.sentinel}", text=each.quorum)
    if not council.elects:
        text = f"{len(council.answering)} of {council.size} Sentinels answer, and they cannot fail over by themselves"
        hint = "bring them back; until then a failover is done by hand, and has to fence the master itself"
        yield Finding(severity="warning", subject="Sentinels", text=text, hint=hint)
    elif council.size < 3:
        text = f"there are {council.size} of them: without one of them nobody is elected"
        yield Finding(severity="warning", subject="Sentinels", text=text, hint="run three or more")
    hasty = [each.sentinel for each in council.answering if 0 < each.number("down-after-milliseconds") < HASTY_MS]
    if hasty:
        where = ", ".join(hasty)
        text = f"down-after-milliseconds is below {HASTY_MS} ({where}): a new master that is well may be replaced"
        hint = "they ask once a second: SENTINEL SET <master> down-after-milliseconds 1500, or more, on each of them"
        yield Finding(severity="warning", subject="Sentinels", text=text, hint=hint)


def _details(council: Council, places: Mapping[Address, str], look: Look | None) -> dict[str, Json]:
    sentinels: list[Json] = [
        {
            "sentinel": each.sentinel,
            "names": (places.get(each.named) or ":".join(map(str, each.named))) if each.named else "",
            "epoch": each.epoch,
            "quorum": each.quorum,
        }
        for each in council.opinions
    ]
    return {
        "sentinels": sentinels,
        "epoch": council.epoch,
        "failing_over": council.at_work,
        "min_replicas_to_write": look.needed if look else None,
        "min_replicas_max_lag": look.lag if look else None,
    }
