"""What a promotion loses at most, and what that rests on. Never less than the truth; unknown is said as unknown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from attrs import evolve, frozen

from resilience.model.failover import FailoverPolicy, Loss
from resilience.model.findings import Finding, blocker
from resilience.model.groups import Fence, GroupFacts, Sample, SyncSet
from resilience.model.positions import Position
from resilience.model.show import as_bytes, as_span, when

from .ancestry import Line, contains
from .candidates import Muster, Standby
from .quorum import Quorum, quorum

DATA_LOSS = "data loss"
SPLIT_BRAIN = "split brain"
_SAME_CLOCK = "assumed: the recorder's clock and that of who fences agree"


@frozen(kw_only=True)
class Ending:
    """When the old primary's last acknowledgement was at the latest, once it is fenced; and where, if that is known."""

    until: datetime | None = None
    ends: Line | None = None
    proven: bool = True

    @classmethod
    def of(cls, fences: Sequence[Fence], primary: str, main: Line | None) -> Ending:
        """Take it from the proofs that nobody can write any more."""
        if not fences:
            return cls()
        own = next((each for each in fences if each.member == primary and each.end is not None), None)
        ends = Line.up_to(main.branches, own.end) if own is not None and own.end is not None and main else None
        proven = all(each.kind != "waived" for each in fences)
        return cls(until=max(each.at for each in fences) if proven else None, ends=ends, proven=proven)


def known_sync(sample: Sample | None, *facts: GroupFacts) -> SyncSet | None:
    """Return who had to acknowledge a write, by the newest of what was recorded and seen, and since when at the latest.

    Until it was seen to be so, another set may have held: that the primary was where it was just then is all one knows.
    """
    known = [_since(sample.sync, sample.position)] if sample is not None and sample.sync is not None else []
    for each in facts:
        primary = each.member(each.primary)
        if each.sync is not None:
            known.append(_since(each.sync, primary.reached if primary is not None else None))
    return max(known, key=lambda each: each.at, default=None)


def _since(sync: SyncSet, position: Position | None) -> SyncSet:
    return sync if sync.since is not None else evolve(sync, since=position)


def proof(found: Muster, sync: SyncSet | None) -> Quorum:
    """Decide who must have every acknowledged write, from what is known of the synchronous standbys."""
    since = None
    if sync is not None and sync.since is not None and found.main is not None and found.confirmed:
        began = Line.up_to(found.main.branches, sync.since)
        since = int(began.end.offset) if began is not None else None
    return quorum(sync, {each.name: each.has for each in found.standbys if not _shrunk(found, each)}, since=since)


def loss_of(
    chosen: Standby, found: Muster, *, sync: SyncSet | None, ending: Ending, before: Sample | None = None
) -> Loss:
    """Return what is lost at most if `chosen` is promoted; a sample `before` has compared the clocks, too."""
    if ending.ends is not None and chosen.has >= ending.ends.end.offset:
        text = f"{chosen.name} has everything up to where {found.primary} stopped in order, {ending.ends.end}"
        return Loss(kind="nothing", evidence=(text,))
    counted = proof(found, sync)
    if counted.proven and chosen.has >= counted.needed:
        reach = f"{chosen.name} has as much as the furthest of them: {_at(chosen)}"
        return Loss(kind="nothing", evidence=(*counted.evidence, reach))
    ends = int(ending.ends.end.offset) if ending.ends is not None else 0
    known = max(found.furthest, found.recorded or 0, ends)
    missing = known - chosen.has if known > chosen.has else None
    evidence = [*counted.evidence]
    if missing:
        evidence.append(f"{chosen.name} is at {_at(chosen)}, {as_bytes(missing)} behind what is known to have been")
    doubts = tuple(_doubts(found, ending))
    bounds = [] if doubts else list(_bounds(chosen, found, before))
    if ending.until is not None and (late := [each for each in bounds if each.since > ending.until]):
        # Nobody had anything after the primary was dead: one of the clocks is wrong, and nobody can tell which.
        doubts = (f"the clocks disagree: {late[0].evidence[0]}, and it was fenced at {when(ending.until)}",)
        bounds = []
    if not bounds:
        nobody = () if doubts else (f"no heartbeat has reached {chosen.name}, and no record covers it",)
        return Loss(kind="unknown", missing=missing, evidence=(*evidence, *doubts, *nobody))
    tightest = max(bounds, key=lambda each: each.since)
    return Loss(
        kind="bounded",
        since=tightest.since,
        until=ending.until,
        missing=missing,
        evidence=(*evidence, *tightest.evidence),
    )


def too_much(loss: Loss, policy: FailoverPolicy, *, now: datetime) -> Iterator[Finding]:
    """Yield why the policy does not allow a loss. Before the primary is fenced it grows, and counts up to `now`."""
    allowed = f"the policy allows {as_span(policy.max_loss)}" if policy.max_loss else "the policy allows no loss"
    accept = "accept_data_loss=True accepts it, by name"
    if loss.kind == "unknown":
        text = f"nobody can tell what is lost, and {allowed}"
        yield blocker(DATA_LOSS, text, f"bring back a member that has more; {accept}")
    if loss.kind == "bounded" and loss.since is not None:
        end = loss.until or now
        if loss.since > end:
            text = f"the clocks disagree: a bound of {when(loss.since)} lies after {when(end)}, and {allowed}"
            hint = f"set the clocks of the recorder and of this machine; {accept}"
            yield blocker(DATA_LOSS, text, hint)
            return
        span = max(timedelta(0), end - loss.since)
        if span > policy.max_loss or not policy.max_loss:
            lost = f"what was acknowledged after {when(loss.since)} may be lost, {as_span(span)} up to {when(end)}"
            hint = f"bring back a member that has more, or plan with a larger max_loss; {accept}"
            yield blocker(DATA_LOSS, f"{lost}, and {allowed}", hint)


def exceeds(loss: Loss, confirmed: Loss) -> str:
    """Say how a loss is greater than the one that was confirmed; empty if it is not."""
    rank = {"nothing": 0, "bounded": 1, "unknown": 2}
    if rank[loss.kind] > rank[confirmed.kind]:
        return f"{loss}, and what was confirmed is: {confirmed}"
    if loss.kind == confirmed.kind == "bounded" and loss.since is not None and confirmed.since is not None:
        if loss.since < confirmed.since:
            return f"it may be lost from {when(loss.since)} on, and what was confirmed is from {when(confirmed.since)}"
        limit = confirmed.at_most
        if limit is not None and loss.at_most is not None and loss.at_most > limit:
            return f"{as_span(loss.at_most)} may be lost, and what was confirmed is {as_span(limit)}"
    return ""


@frozen(kw_only=True)
class _Bound:
    since: datetime
    evidence: tuple[str, ...]


def _bounds(chosen: Standby, found: Muster, before: Sample | None) -> Iterator[_Bound]:
    """Yield from when on something may be lost, by the clock of those who record and fence."""
    complete_at = chosen.member.complete_at
    if complete_at is not None:
        # A look that took its time tells less of the clocks than one that did not.
        compared = [_ahead(each) for each in (found.sample, before) if each and each.primary == found.primary]
        ahead = min((each for each in compared if each is not None), default=None)
        text = f"{chosen.name} has everything that was acknowledged before {when(complete_at)}, by the primary's clock"
        clocks = (
            "assumed: the primary's clock and that of who fences it agree"
            if ahead is None
            else f"the primary's clock was {as_span(ahead)} ahead of the recorder's at most; {_SAME_CLOCK}"
        )
        yield _Bound(since=complete_at - (ahead or timedelta(0)), evidence=(text, clocks))
    if found.sample is not None and found.recorded is not None and chosen.has >= found.recorded:
        text = f"{chosen.name} has all that {found.primary} had when it was last recorded, at {when(found.sample.at)}"
        yield _Bound(since=found.sample.at, evidence=(text, _SAME_CLOCK))


def _ahead(sample: Sample | None) -> timedelta | None:
    """By how much the primary's clock was ahead of the recorder's, at most: it was read after `sample.at`."""
    own = next((each for each in sample.members if each.name == sample.primary), None) if sample is not None else None
    return None if sample is None or own is None or own.complete_at is None else own.complete_at - sample.at


def _doubts(found: Muster, ending: Ending) -> Iterator[str]:
    if not ending.proven:
        yield f"{found.primary or 'the primary'} may still write, nobody has proven otherwise: all that is lost"
    if found.astray and not found.confirmed:
        names = ", ".join(found.astray)
        yield f"there is history that has left the group's: of {names}; which branch the primary was on nobody recorded"


def _shrunk(found: Muster, standby: Standby) -> bool:
    """Tell whether a standby has less than when it was recorded: it was made anew, and what it acknowledged is gone."""
    was = next((each for each in found.sample.members if each.name == standby.name), None) if found.sample else None
    line = Line.of(was) if was is not None else None
    if line is None or found.main is None or not contains(Line(found.main.branches, line.end), line):
        return False
    return standby.has < line.end.offset


def _at(standby: Standby) -> str:
    return str(standby.member.durable)
