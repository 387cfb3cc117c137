"""Which backups go, which stay, and why each. Nothing that a kept backup needs ever goes.

What a policy says of a kind is applied to the backups of that kind that can be restored; then everything else that must
not go is added, and last what all these build on. Sorting is the dearest of it, so a catalogue of a hundred thousand
backups is planned in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from attrs import define, evolve, field

from resilience.concurrency import in_order_of
from resilience.model.errors import Refused
from resilience.model.findings import Doubt, Finding
from resilience.model.manifests import Manifest
from resilience.model.pruning import Decision, PrunePlan
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule
from resilience.model.show import as_span
from resilience.model.stock import ArchiveFacts, BackupObjects

from .chains import REPLAYABLE, broken_chains
from .trimming import common_trims, plan_trims
from .window import newest_on, window_starts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plan_prune(
    known: Sequence[Manifest],
    facts: ArchiveFacts,
    policy: RetentionPolicy,
    *,
    now: datetime,
    doubts: Iterable[Doubt] = (),
    spared: Mapping[str, str] | None = None,
) -> PrunePlan:
    """Decide what of a target goes at the moment `now`, and say of each why it goes or stays.

    `known` are all manifests, `doubts` those that cannot be used; `spared` stay for the reason given. Raises Refused if
    nothing at all would be kept.
    """
    if now.utcoffset() is None:
        raise ValueError("now is a naive datetime: give it a time zone")
    doubts = tuple(doubts)
    choice = _Choice(known=known, facts=facts, policy=policy, now=now, doubts=doubts)
    doubtful = choice.doubtful()
    choice.by_rules()
    choice.by_name()
    choice.by_facts(doubtful, spared or {})
    usable = [each for each in known if each.id not in choice.broken and each.kind in REPLAYABLE]
    starts = window_starts(usable, facts.logs, now - policy.window) if policy.window is not None else None
    for each in [] if starts is None else [*starts.bases, *starts.bridges]:
        choice.keep(each.id, f"moments of the last {as_span(policy.window)} start from it")
    choice.latest(usable)
    choice.parents()
    if known and not choice.kept:
        raise Refused(
            "the policy would keep nothing",
            operation="prune",
            subject=facts.target,
            hint="let a rule keep at least one, or remove the last backups by hand",
        )
    kept = [each for each in usable if each.id in choice.kept]
    trims, log_kept, notes = plan_trims(
        facts.logs, kept, policy, now=now, starts=starts, doubtful=tuple(each.id for each in doubtful)
    )
    return PrunePlan(
        target=facts.target,
        system=facts.system,
        policy=policy,
        made_at=now,
        backups=choice.decisions(),
        leftovers=tuple(choice.leftovers()),
        log=trims,
        log_kept=log_kept,
        findings=(*choice.findings, *(each.finding for each in doubts), *notes),
    )


def ranked(known: Iterable[Manifest]) -> list[Manifest]:
    """Return backups, the newest last. On one branch the one that reaches furthest is newer, whatever clocks say."""
    by_branch = in_order_of([*known], lambda each: (*_place(each), each.ended_at, each.id))
    order: list[tuple[tuple[datetime, str, str, int, datetime, str], Manifest]] = []
    for _, group in groupby(by_branch, key=lambda each: (each.lineage, each.recovery_point.position.branch)):
        latest = _EPOCH
        for each in group:
            latest = max(latest, each.ended_at)
            order.append(((latest, *_place(each), each.ended_at, each.id), each))
    return [each for _, each in in_order_of(order, lambda item: item[0])]


def _place(each: Manifest) -> tuple[str, str, int]:
    point = each.recovery_point.position
    return each.lineage, point.branch, point.offset


@define(kw_only=True)
class _Choice:
    """What stays and the first reason for it; whatever is not in `kept` goes."""

    known: Sequence[Manifest]
    facts: ArchiveFacts
    policy: RetentionPolicy
    now: datetime
    doubts: Sequence[Doubt]
    kept: dict[str, str] = field(factory=dict)
    gone: dict[str, str] = field(factory=dict)
    findings: list[Finding] = field(factory=list)
    broken: dict[str, str] = field(init=False)
    order: list[Manifest] = field(init=False)
    stock: dict[str, BackupObjects] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.broken = broken_chains(self.known)
        self.order = ranked(self.known)
        self.stock = {each.id: each for each in self.facts.backups}
        for backup, why in self.broken.items():
            self._warn(backup, f"it cannot be restored: {why}")

    def keep(self, backup: str, reason: str) -> None:
        """Let a backup stay, unless it does already."""
        self.kept.setdefault(backup, reason)

    def by_rules(self) -> None:
        """Apply the rule of every kind."""
        order = self.order
        kinds = dict.fromkeys((each.system, each.kind) for each in order)
        for system, kind in kinds:
            some = [each for each in order if (each.system, each.kind) == (system, kind)]
            rule = self.policy.rule(system, kind)
            if rule is None:
                for each in some:
                    self.keep(each.id, f"no rule is about {system} {kind}")
            else:
                self._by_rule(rule, some)

    def _by_rule(self, rule: RetentionRule, some: Sequence[Manifest]) -> None:
        usable = [each for each in some if each.id not in self.broken]
        for keep in rule.keep:
            young = [each for each in some if self.now - each.ended_at <= keep.lasting]
            wanted = f"until it is {as_span(keep.lasting)} old"
            if keep.every is None:
                for each in young:
                    self.keep(each.id, wanted)
            else:
                newest = {_period(each, keep.every): each for each in young if each.id not in self.broken}
                for each in newest.values():
                    self.keep(each.id, f"the newest of its {as_span(keep.every)}, {wanted}")
        for each in usable[len(usable) - rule.at_least :] if rule.at_least < len(usable) else usable:
            self.keep(each.id, f"one of the newest {rule.at_least}" if rule.at_least > 1 else "the newest")
        for each in some:
            self.gone[each.id] = self._past(each, rule.keep)

    def _past(self, each: Manifest, keeps: Sequence[Keep]) -> str:
        age = self.now - each.ended_at
        wanting = [keep for keep in keeps if age <= keep.lasting and keep.every is not None]
        if wanting:
            spans = " and of its ".join(as_span(keep.every) for keep in wanting)
            return f"{as_span(age)} old, not the newest of its {spans}"
        longest = max((keep.lasting for keep in keeps), default=None)
        past = f", past {as_span(longest)}" if longest is not None else ", and not among the newest"
        return f"{as_span(age)} old{past}"

    def by_name(self) -> None:
        """Let those stay that are named."""
        ids = {each.id for each in self.known}
        for backup in sorted(self.policy.forever):
            if backup in ids:
                self.kept[backup] = "kept for ever, by name"
            else:
                self._warn(backup, "it is named to be kept for ever, and is not there")

    def by_facts(self, doubtful: Sequence[BackupObjects], spared: Mapping[str, str]) -> None:
        """Let those stay that cannot go, or must not while something else is going on."""
        for each in self.facts.backups:
            if each.running and not each.manifest and each.parent is not None and self._may_run(each):
                self.keep(each.parent, f"the backup {each.id} that builds on it is running")
            if each.held and each.manifest:
                self.keep(each.id, f"held: {each.held}")
        for manifest in self.known if doubtful else ():
            if manifest.kind in REPLAYABLE and any(self._precedes(manifest, each) for each in doubtful):
                self.keep(manifest.id, "a later backup that may build on it cannot be read")
        for backup, missing in self._on_doubts().items():
            self.keep(backup, f"{missing}, which it builds on, cannot be read now")
        for backup, why in spared.items():
            self.keep(backup, why)

    def doubtful(self) -> list[BackupObjects]:
        """Return the backups that cannot be read and may build on others, or that others may build on."""
        found = [
            self.stock[each.backup] for each in self.doubts if each.backup is not None and each.backup in self.stock
        ]
        return [
            each for each in found if (each.manifest or each.objects) and (each.kind in REPLAYABLE or not each.kind)
        ]

    def _precedes(self, one: Manifest, other: BackupObjects) -> bool:
        """Tell whether a backup may have been there before another: the hosts' clocks say so, or the store's does."""
        lies = self.stock.get(one.id)
        return one.id < other.id or (lies is not None and lies.newest <= other.newest)

    def _on_doubts(self) -> dict[str, str]:
        """Return the backups that build, directly or not, on one that cannot be used: it may be mended yet."""
        doubtful = {each.backup for each in self.doubts if each.backup is not None}
        by_id = {each.id: each for each in self.known}
        found: dict[str, str] = {}
        for backup in self.broken if doubtful else ():
            at, way = by_id[backup], set[str]()
            while at.parent in by_id and at.id not in way:
                way.add(at.id)
                at = by_id[at.parent]
            if at.parent is not None and at.parent in doubtful:
                found[backup] = at.parent
        return found

    def latest(self, usable: Sequence[Manifest]) -> None:
        """Let stay what the latest is restored from: after a recovery to a moment that is not the newest backup."""
        found = newest_on(self.facts.logs, usable)
        if found is None:
            return
        branch, newest = found
        rule = self.policy.rule(newest.system, newest.kind)
        if rule is None or rule.at_least:
            self.keep(newest.id, f"the newest that leads to timeline {branch}, which was written last")

    def parents(self) -> None:
        """Let everything stay that something kept builds on."""
        by_id = {each.id: each for each in self.known}
        for backup in [*self.kept]:
            each = by_id.get(backup)
            while each is not None and each.parent is not None and each.parent not in self.kept:
                self.keep(each.parent, f"{each.id} builds on it")
                each = by_id.get(each.parent)
        self.kept = {backup: reason for backup, reason in self.kept.items() if backup in by_id}

    def decisions(self) -> tuple[Decision, ...]:
        """Return what becomes of every backup, the newest first."""
        return tuple(self._decision(each) for each in reversed(self.order))

    def _decision(self, each: Manifest) -> Decision:
        reason = self.kept.get(each.id)
        lies = self.stock.get(each.id)
        return Decision(
            backup=each.id,
            kind=each.kind,
            parent=each.parent,
            stays=reason is not None,
            reason=reason if reason is not None else self.gone[each.id],
            objects=0 if lies is None else lies.objects,
            bytes=each.stored if lies is None else lies.bytes,
        )

    def leftovers(self) -> Iterable[Decision]:
        """Decide about objects that no manifest names."""
        for each in self.facts.backups:
            if each.objects and not each.manifest:
                reason, stays = self._left(each)
                if stays and (each.published or each.id in self.policy.forever):
                    self._warn(each.id, "its manifest is missing, and nobody has retired it: was it deleted?")
                yield Decision(
                    backup=each.id,
                    kind=each.kind,
                    stays=stays,
                    reason=reason,
                    objects=each.objects,
                    bytes=each.bytes,
                )

    def _left(self, each: BackupObjects) -> tuple[str, bool]:
        if each.held:
            return f"held: {each.held}", True
        if any(doubt.backup == each.id for doubt in self.doubts):
            return "its manifest is missing, and nobody has retired it", True
        if each.retired:
            return "it was retired, and something of it is left", False
        if each.id in self.policy.forever:
            return "kept for ever, by name, though its manifest is missing", True
        quiet = as_span(max(self.now - each.newest, timedelta(0)))
        if self._may_run(each):
            return f"last written {quiet} ago: it may be a running backup's", True
        if each.published:
            return self._unlisted(each, quiet)
        what = "never ended" if each.running else "published nothing"
        return f"{what}, and nothing was written for {quiet}", False

    def _unlisted(self, each: BackupObjects, quiet: str) -> tuple[str, bool]:
        """Decide about a backup that somebody has removed the manifest of, and nothing else: it may come back."""
        rule = self.policy.rule(self.facts.system, each.kind)
        longest = max((keep.lasting for keep in rule.keep), default=None) if rule is not None else None
        if longest is not None and self.now - each.newest > longest:
            return f"its manifest is missing, and it is {quiet} old, past {as_span(longest)}", False
        return "it was published, its manifest is missing, and nobody has retired it", True

    def _may_run(self, each: BackupObjects) -> bool:
        return self.now - each.newest <= self.policy.grace

    def _warn(self, backup: str, text: str) -> None:
        self.findings.append(Finding(severity="warning", subject=backup, text=text))


def _period(each: Manifest, every: timedelta) -> int:
    return (each.started_at - _EPOCH) // every


def common(one: PrunePlan, other: PrunePlan) -> PrunePlan:
    """Return the first plan without what the second does not remove too; what stays meanwhile has the reason."""
    reasons = {each.backup: each for each in other.backups}
    removed = {*other.removed}
    leftovers = {each.backup: each for each in other.leftovers}
    return evolve(
        one,
        backups=tuple(_agreed(each, reasons.get(each.backup), each.backup in removed) for each in one.backups),
        leftovers=tuple(
            _agreed(each, found := leftovers.get(each.backup), found is not None and not found.stays)
            for each in one.leftovers
        ),
        log=common_trims(one, other),
        log_kept=other.log_kept,
        findings=other.findings,
    )


def _agreed(one: Decision, other: Decision | None, goes: bool) -> Decision:
    if one.stays or goes:
        return one
    reason = "it is not there any more" if other is None else f"meanwhile: {other.reason}"
    return evolve(one, stays=True, reason=reason)
