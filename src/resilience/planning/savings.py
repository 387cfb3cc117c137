"""What would make keeping backups cheaper: every saving is the difference of two estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from statistics import median

from attrs import evolve, frozen

from resilience.model.costs import Saving
from resilience.model.loads import DAY, BackupLoad, Load
from resilience.model.manifests import Manifest
from resilience.model.prices import Prices
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule, Tier, TierAt

from .cost import estimate_cost

WEEK = 7 * DAY
WORTH = 0.01
"""Dollars a month: a smaller saving is not mentioned."""


@frozen(kw_only=True)
class Ratios:
    """What was measured: plain bytes per stored byte, and the bytes of an increment per byte of a full backup.

    None where nothing was measured; what is not measured is not promised.
    """

    compression: float | None = None
    increment: float | None = None


def measured_ratios(manifests: Sequence[Manifest]) -> Ratios:
    """Return what the backups of an archive show: how they compress, and how small the increments are.

    An increment is compared with the full backup that its chain begins with, both as they are stored.
    """
    stored = sum(manifest.stored for manifest in manifests)
    firsts = _firsts(manifests)
    shares = [
        each.stored / firsts[each.id].stored
        for each in manifests
        if each.id in firsts and firsts[each.id] is not each and firsts[each.id].stored
    ]
    return Ratios(
        compression=sum(manifest.size for manifest in manifests) / stored if stored else None,
        increment=median(shares) if shares else None,
    )


def measured_load(manifests: Sequence[Manifest]) -> tuple[BackupLoad, ...]:
    """Return how much is written how often, by what an archive holds of one target: medians of the last ten of a kind.

    A kind of which there are fewer than two is left out: how often it is taken nobody can tell.
    """
    firsts = _firsts(manifests)
    found = []
    for system, kind in sorted({(manifest.system, manifest.kind) for manifest in manifests}):
        some = [each for each in manifests if (each.system, each.kind) == (system, kind)]
        some = sorted(some, key=lambda each: each.started_at)[-10:]
        spans = [(later.started_at - earlier.started_at).total_seconds() for earlier, later in pairwise(some)]
        if not spans or not median(spans):
            continue
        full = firsts.get(some[-1].id, some[-1])
        found.append(
            BackupLoad(
                system=system,
                kind=kind,
                size=int(median(each.stored for each in some)),
                every=timedelta(seconds=median(spans)),
                builds_on=full.kind if full is not some[-1] else None,
            )
        )
    return tuple(found)


def _firsts(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Return the full backup that each one's chain begins with, where the chain is whole."""
    known = {manifest.id: manifest for manifest in manifests}
    firsts: dict[str, Manifest] = {}
    for manifest in manifests:
        first, left = manifest, len(manifests)
        while first.parent in known and left:
            first, left = known[first.parent], left - 1
        if first.parent is None:
            firsts[manifest.id] = first
    return firsts


def savings(
    policy: RetentionPolicy,
    load: Load,
    prices: Prices,
    *,
    ratios: Ratios | None = None,
    offline: bool = False,
    keep: timedelta = 90 * DAY,
) -> tuple[Saving, ...]:
    """Return what would be saved a month by one change each, the largest first. They do not add up.

    `ratios` are measured: without them neither increments nor compression are suggested (compression is for a load of
    plain bytes). `offline` allows tiers that cannot be read for hours; `keep` is for kinds that nothing expires.
    """
    ratios = ratios or Ratios()
    before = estimate_cost(policy, load, prices).monthly

    def saved(what: str, caution: str, policy: RetentionPolicy = policy, load: Load = load) -> Saving:
        return Saving(what=what, before=before, after=estimate_cost(policy, load, prices).monthly, caution=caution)

    found = [
        *_expiry(policy, load, saved, keep),
        *_tiers(policy, load, prices, saved, offline=offline),
        *_increments(policy, load, saved, ratios.increment),
    ]
    if ratios.compression is not None and ratios.compression > 1:
        smaller = [evolve(each, size=int(each.size / ratios.compression)) for each in load.backups]
        what = f"compress what is stored, {ratios.compression:.1f}:1 as measured"
        found.append(saved(what, "", load=evolve(load, backups=tuple(smaller))))
    worth = [each for each in found if each.monthly >= WORTH]
    return tuple(sorted(worth, key=lambda each: each.monthly, reverse=True))


def _expiry(policy: RetentionPolicy, load: Load, saved: Callable[..., Saving], keep: timedelta) -> Iterator[Saving]:
    """Expire what nothing expires; keep fewer of what is taken several times a day."""
    for each in load.backups:
        rule = policy.rule(each.system, each.kind)
        if rule is None:
            new = RetentionRule(system=each.system, kind=each.kind, keep=(Keep(lasting=keep),))
            changed = evolve(policy, rules=(*policy.rules, new))
            yield saved(f"let {each.name} expire after {keep.days} days", "it is gone then", changed)
        elif each.every < DAY and max(one.lasting for one in rule.keep) > WEEK:
            longest = max(one.lasting for one in rule.keep)
            thinned = [Keep(lasting=WEEK)] + ([] if each.builds_on else [Keep(lasting=longest, every=DAY)])
            what = f"keep each {each.name} for a week" + ("" if each.builds_on else ", then one a day")
            why = (
                "older moments come from full backups and the log"
                if each.builds_on
                else "older moments are a day apart"
            )
            yield saved(what, why, _with(policy, evolve(rule, keep=tuple(thinned))))


def _tiers(
    policy: RetentionPolicy, load: Load, prices: Prices, saved: Callable[..., Saving], *, offline: bool
) -> Iterator[Saving]:
    """Find the cheapest tiers for each kind, and suggest them all at once."""
    ladders = list(_ladders(prices, offline=offline))
    words, caution, changed = [], "", policy
    for each in load.backups:
        rule = policy.rule(each.system, each.kind)
        if rule is None:
            continue
        tried = {tiers: saved("", "", _with(policy, evolve(rule, tiers=tiers))) for tiers in ladders}
        best = min(tried, key=lambda tiers: tried[tiers].after)
        if tried[best].monthly >= WORTH:
            words.append(f"{each.name} in {_words(best)}")
            caution = caution or _slow(best, rule.tiers)
            changed = _with(changed, evolve(rule, tiers=best))
    if words:
        yield saved(f"keep {'; '.join(words)}", caution, changed)


def _increments(
    policy: RetentionPolicy, load: Load, saved: Callable[..., Saving], increment: float | None
) -> Iterator[Saving]:
    """Take increments between weekly full backups. Only base backups of PostgreSQL can have any."""
    full = load.backup("postgresql", "base")
    rule = policy.rule("postgresql", "base")
    if full is None or rule is None or increment is None or full.every >= WEEK:
        return
    smaller = BackupLoad(
        system=full.system, kind="incremental", size=int(full.size * increment), every=full.every, builds_on=full.kind
    )
    others = [each for each in load.backups if each is not full]
    weekly = evolve(full, every=WEEK)
    if load.backup("postgresql", "incremental") is None:
        others.append(smaller)
        policy = evolve(policy, rules=(*policy.rules, evolve(rule, kind="incremental")))
    else:
        others = [evolve(each, builds_on="base") if each.name == smaller.name else each for each in others]
    what = f"full backups of postgresql once a week, increments between them ({increment:.0%} of one, as measured)"
    yield saved(what, "a restore reads up to a week of increments", policy, evolve(load, backups=(weekly, *others)))


def _ladders(prices: Prices, *, offline: bool) -> Iterator[tuple[TierAt, ...]]:
    """Yield the tiers by age that are worth a try."""
    names: list[Tier] = [each for each in ("hot", "cool", "cold") if each in prices.tiers]
    for name in names:
        yield (TierAt(tier=name),)
    for after in (7 * DAY, 30 * DAY):
        for first, later in pairwise(names):
            yield (TierAt(tier=first), TierAt(tier=later, after=after))
        if offline and "archive" in prices.tiers:
            yield (TierAt(tier="hot"), TierAt(tier="archive", after=after))


def _words(tiers: Sequence[TierAt]) -> str:
    first, *later = tiers
    return ", ".join([first.tier, *(f"from day {each.after.days} on {each.tier}" for each in later)])


def _slow(tiers: Sequence[TierAt], instead: Sequence[TierAt]) -> str:
    if any(each.tier == "archive" for each in tiers):
        return "what lies in Archive takes up to 15 hours to come back"
    if any(each.tier == "archive" for each in instead):
        return ""  # nothing speaks against it: it is read at once, and was not before
    return "" if all(each.tier == "hot" for each in tiers) else "every GB that is read back costs"


def _with(policy: RetentionPolicy, rule: RetentionRule) -> RetentionPolicy:
    """Return the policy with another rule in place of the one about the same kind."""
    rules = [rule if (each.system, each.kind) == (rule.system, rule.kind) else each for each in policy.rules]
    return evolve(policy, rules=tuple(rules))
