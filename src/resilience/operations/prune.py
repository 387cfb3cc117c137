"""prune(): remove what a policy no longer wants, and nothing that anything kept needs; plan_prune() looks only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from attrs import define, evolve, field

from resilience.concurrency import let_go, pondered, uncollected
from resilience.model.errors import Refused
from resilience.model.events import Notifier, Observer
from resilience.model.findings import Doubt
from resilience.model.ids import new_id as fresh_id
from resilience.model.manifests import Manifest
from resilience.model.moments import utc_now
from resilience.model.pruning import Decision, Held, PrunePlan, PruneReport, Removed
from resilience.model.retention import RetentionPolicy
from resilience.model.show import as_span
from resilience.model.stock import ArchiveFacts
from resilience.planning import retention
from resilience.planning.chains import REPLAYABLE
from resilience.planning.trimming import common_trims
from resilience.primitives import Archiver, Pruning

AHEAD = timedelta(hours=1)
"""How far a clock may be ahead of the store's: a month would make everything look a month older."""


async def plan_prune(
    archive: Archiver, target: str, *, policy: RetentionPolicy, clock: Callable[[], datetime] = utc_now
) -> PrunePlan:
    """Return what `prune` with the same policy would remove now, what stays, why each, and the bytes that are freed.

    Nothing is written. A manifest that cannot be read is a finding, and what it may build on stays. Raises Refused if
    the policy would keep nothing, Corrupt if a record of the log is damaged, Unavailable if the store does not answer.
    """
    return await _planned(archive, target, policy, clock())


async def prune(
    archive: Archiver,
    target: str,
    *,
    policy: RetentionPolicy | None = None,
    plan: PrunePlan | None = None,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
    new_id: Callable[[datetime], str] = fresh_id,
) -> PruneReport:
    """Remove from an archive what `policy` no longer wants of a target, or exactly what a `plan` says that was shown.

    It looks again before anything goes, and never removes more than the plan says: what has appeared since stays, and
    what something kept has come to need. A backup's manifest goes first, those that build on it before it, the log
    last. An object that the store does not let go (a legal hold, immutability) is reported, and the others go; while
    that is a manifest, all of its backup stays and what it builds on. `actor` does it for a `reason`: they stand in the
    run record, in the record that each backup was retired, in events and in the report.

    Killed or cancelled at any moment it leaves every kept backup whole; run again it goes on, and finds what was left.
    Raises Refused if the policy would keep nothing, or if the clock is more than an hour ahead of the store's;
    Corrupt, Conflict and Unavailable as the archive does, having removed only what it was to.
    """
    began = time.monotonic()
    told = Notifier("prune", target, observer, actor=actor, reason=reason)
    with told.outcome():
        shown = await _shown(archive, target, policy, plan, clock)
        done = _Done(told=told)
        if not shown.empty:
            told.total = shown.freed
            async with archive.pruning(target, id=new_id(clock()), actor=actor, reason=reason) as pruning:
                _check_clock(shown, pruning.now)
                await _Execution(archive=archive, plan=shown, pruning=pruning, done=done).run()
    return PruneReport(
        plan=shown,
        removed=tuple(done.removed),
        spared=tuple(done.spared),
        held=tuple(done.held),
        objects=done.objects,
        freed=done.freed,
        seconds=time.monotonic() - began,
        actor=actor,
        reason=reason,
        findings=shown.findings,
    )


async def _shown(
    archive: Archiver,
    target: str,
    policy: RetentionPolicy | None,
    plan: PrunePlan | None,
    clock: Callable[[], datetime],
) -> PrunePlan:
    if plan is not None and policy is None:
        if plan.target != target:
            raise ValueError(f"the plan is for {plan.target}, not for {target}")
        return plan
    if policy is not None and plan is None:
        return await _planned(archive, target, policy, clock())
    raise TypeError("prune takes either a policy, or a plan that was made with one")


async def _planned(archive: Archiver, target: str, policy: RetentionPolicy, now: datetime) -> PrunePlan:
    with uncollected():
        seen = await _look(archive, target)
        try:
            return await seen.plan(policy, now)
        finally:
            entries = [each for log in seen.facts.logs for some in log.entries.values() for each in some]
            values, known = [*seen.facts.backups, *entries], seen.known
            entries.clear()
            del seen
            await let_go(values)
            await let_go(known)


@define
class _Seen:
    """What an archive has of a target."""

    known: list[Manifest]
    doubts: list[Doubt]
    facts: ArchiveFacts

    async def plan(self, policy: RetentionPolicy, now: datetime, spared: dict[str, str] | None = None) -> PrunePlan:
        # Of a hundred thousand backups that takes seconds: the event loop does not wait for it.
        return await pondered(
            retention.plan_prune, self.known, self.facts, policy, now=now, doubts=self.doubts, spared=spared
        )


async def _look(archive: Archiver, target: str) -> _Seen:
    """Look at objects first: of a backup that is published meanwhile all objects are older than its manifest."""
    with uncollected():
        facts = await archive.survey(target)
        doubts: list[Doubt] = []
        known = [each async for each in archive.manifests(target, doubts=doubts)]
        return _Seen(known, doubts, facts)


def _check_clock(plan: PrunePlan, now: datetime) -> None:
    if plan.made_at > now + AHEAD:
        raise Refused(
            f"the clock that the plan was made by is {as_span(plan.made_at - now)} ahead of the store's",
            operation="prune",
            subject=plan.target,
            hint="set the clock: nothing was removed",
        )


@define
class _Done:
    """What was done so far."""

    told: Notifier
    removed: list[str] = field(factory=list)
    spared: list[Decision] = field(factory=list)
    held: list[Held] = field(factory=list)
    objects: int = 0
    freed: int = 0

    def add(self, removed: Removed, text: str) -> None:
        self.held += removed.held
        self.objects += removed.objects
        self.freed += removed.bytes
        self.told.advance(removed.bytes, text)

    def spare(self, decision: Decision, why: str) -> None:
        self.spared.append(evolve(decision, stays=True, reason=why))


@define(kw_only=True)
class _Execution:
    """Carries out a plan, looking again as it goes."""

    archive: Archiver
    plan: PrunePlan
    pruning: Pruning
    done: _Done
    seen: _Seen = field(init=False)
    now: datetime = field(init=False)
    _stays: dict[str, str] = field(factory=dict, init=False)

    async def run(self) -> None:
        """Remove backups, then leftovers, then what nothing that is still there needs of the log."""
        self.seen = await _look(self.archive, self.plan.target)
        self.now = min(self.plan.made_at, self.pruning.now)
        agreed = retention.common(self.plan, await self.seen.plan(self.plan.policy, self.now))
        were_to_go = {*self.plan.removed, *(each.backup for each in self.plan.leftovers if not each.stays)}
        both = (*agreed.backups, *agreed.leftovers)
        self.done.spared += [each for each in both if each.stays and each.backup in were_to_go]
        for chain in chains(agreed.backups):
            await self._retire(chain)
        await self._leftovers(agreed)
        if agreed.log:
            await self._log(agreed)

    async def _retire(self, chain: Sequence[Decision]) -> None:
        """Retire backups that build on each other, the last first; what is held keeps those that it builds on."""
        by_id = {each.id: each for each in self.seen.known}
        if any(each.kind in REPLAYABLE for each in chain):
            await self._look_for_children()
        for each in chain:
            why = self._stays.get(each.backup)
            if why is None:
                removed = await self.pruning.retire(by_id[each.backup])
                self.done.add(removed, f"retired {each.backup}")
                if removed.gone:
                    self.done.removed.append(each.backup)
                    continue
                why = f"held: {removed.held[0].why}"
            self.done.spare(each, why)
            if each.parent is not None:
                self._stays.setdefault(each.parent, f"{each.backup} builds on it and stays: {why}")

    async def _look_for_children(self) -> None:
        """Find backups that have appeared meanwhile; what they build on stays."""
        seen = [each.id for each in self.seen.known] + [each.backup for each in self.seen.doubts if each.backup]
        for each in await self.pruning.added(seen):
            self.seen.known.append(each)
            if each.parent is not None:
                self._stays.setdefault(each.parent, f"meanwhile {each.id} builds on it")

    async def _leftovers(self, agreed: PrunePlan) -> None:
        lies = {each.id: each for each in self.seen.facts.backups}
        for each in agreed.leftovers:
            if not each.stays:
                quiet = self.now - self.plan.policy.grace
                removed = await self.pruning.abandon(lies[each.backup], quiet=quiet)
                self.done.add(removed, f"removed what was left of {each.backup}")
                if not removed.gone:
                    self.done.spare(each, "something writes there, or it was published meanwhile")

    async def _log(self, agreed: PrunePlan) -> None:
        await self._look_for_children()
        removed = {*self.done.removed}
        self.seen.known = [each for each in self.seen.known if each.id not in removed]
        there = {each.id: "it is there" for each in self.seen.known}
        again = await self.seen.plan(self.plan.policy, self.now, there)
        for trim in common_trims(agreed, again):
            self.done.add(await self.pruning.trim(trim), f"removed {trim.what} of the log")


def chains(decisions: Iterable[Decision]) -> list[list[Decision]]:
    """Return what goes, what builds on each other together and the last first; the oldest chain first."""
    going = {each.backup: each for each in decisions if not each.stays}
    found: dict[str, list[tuple[int, Decision]]] = {}
    for each in reversed(going.values()):
        depth, root = 0, each
        while root.parent in going and depth < len(going):
            depth, root = depth + 1, going[root.parent]
        found.setdefault(root.backup, []).append((depth, each))
    return [[each for _, each in sorted(chain, key=lambda one: -one[0])] for chain in found.values()]
