"""What a policy costs: storage by tier, what is paid for and not used, operations, retrieval. Pure arithmetic.

It is the cost of a month in which as much goes as comes. Sources: learn.microsoft.com/azure/storage/blobs,
access-tiers-overview (minimum durations), archive-cost-estimation and blob-storage-estimate-costs (what is billed as
which operation: a block as a write to the Hot tier, its commit and a change of tier as a write to the tier itself).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise

from attrs import define, field, frozen

from resilience.model.costs import Cost, CostLine, Item
from resilience.model.findings import Finding
from resilience.model.loads import DAY, BackupLoad, Load, LogLoad, RestoreLoad
from resilience.model.prices import GB, Prices
from resilience.model.retention import RetentionPolicy, Tier, TierAt

from .lifetimes import Lifetime, lifetimes, log_lifetime

MONTH = 365.25 / 12
"""Days."""
YEAR = timedelta(days=365)
RECORDS = 3
"""Small objects that every backup writes: two of the run, and the manifest."""
LISTED_AT_ONCE = 5000
"""Names in one answer of List Blobs."""


def estimate_cost(
    policy: RetentionPolicy,
    load: Load,
    prices: Prices,
    *,
    goal: float | None = None,
    forever: timedelta = YEAR,
) -> Cost:
    """Compute what a month costs under a policy, in dollars, once as much goes as comes; line by line.

    `goal` is what a year may cost; beyond it there is a finding. Backups that no rule is about are taken to be
    `forever` old at most, and a finding says that they go on growing. Raises ValueError for a tier without a price.
    Not in it: the network out of the region, sealing keys in a vault, tax.
    """
    bill = _Bill(prices=prices, load=load)
    for backups in load.backups:
        lives = lifetimes(policy, load, backups, forever=forever)
        _backups(bill, policy, backups, lives)
    for log in load.logs:
        _log(bill, policy, log, log_lifetime(policy, load, log, forever=forever))
    for restores in load.restores:
        _restores(bill, policy, restores)
    _looks(bill)
    lines = bill.lines()
    findings = [*_endless(policy, load, forever), *_unused(lines, prices)]
    cost = Cost(prices=prices, lines=lines, held=bill.held, findings=tuple(findings))
    if goal is None or cost.yearly <= goal:
        return cost
    text = f"12 times ${cost.monthly:,.2f} = ${cost.yearly:,.2f} a year, ${cost.yearly - goal:,.2f} over the goal"
    over = Finding(severity="warning", subject=f"${goal:,.2f} a year", text=text, hint="see what savings() suggests")
    return Cost(prices=prices, lines=lines, held=bill.held, findings=(*findings, over))


@frozen
class _Stay:
    """A time in one tier, in days."""

    tier: Tier
    days: float
    last: bool


def stays(tiers: Sequence[TierAt], lasting: timedelta) -> list[_Stay]:
    """Return in which tiers something lies that lives that long, and for how many days in each."""
    ages = [max(timedelta(0), each.after) for each in tiers]
    ends = [*(min(age, lasting) for age in ages[1:]), lasting]
    found = [
        _Stay(each.tier, (end - age) / DAY, last=end == lasting)
        for each, age, end in zip(tiers, ages, ends, strict=True)
        if age < end
    ]
    return found or [_Stay(tiers[0].tier, 0.0, last=True)]


def tier_at(tiers: Sequence[TierAt], age: timedelta) -> Tier:
    """Return in which tier something of that age lies."""
    return next((each.tier for each in reversed(tiers) if each.after <= age), tiers[0].tier)


@define(kw_only=True)
class _Bill:
    """Adds up amounts; operations are counted, bytes are GB."""

    prices: Prices
    load: Load
    held: float = 0.0
    objects: float = 0.0
    manifests: dict[str, float] = field(factory=lambda: defaultdict(float))
    _amounts: dict[tuple[str, Item, Tier, float], float] = field(factory=lambda: defaultdict(float), init=False)

    def add(self, subject: str, item: Item, tier: Tier, amount: float, *, price: float) -> None:
        if amount > 0:
            self._amounts[subject, item, tier, price] += amount

    def store(self, subject: str, tiers: Sequence[TierAt], daily: float, lives: Sequence[Lifetime]) -> None:
        """Add the storage of so many GB a day; what is deleted stays a while longer where it was."""
        for life in lives:
            rate = daily * life.share
            for stay in stays(tiers, life.lasting):
                price = self.prices.of(stay.tier)
                days = stay.days + (self.load.undeletable / DAY if stay.last else 0)
                self.held += rate * days
                self.add(subject, "storage", stay.tier, rate * days, price=price.storage)
                unused = rate * max(0.0, price.minimum / DAY - days)
                self.add(subject, "paid but not used", stay.tier, unused, price=price.storage)

    def put(self, subject: str, tier: Tier, size: int, a_month: float) -> None:
        """Add the operations of putting so many objects, each of at most `size` bytes."""
        blocks = -(-size // self.load.block)
        commit = self.prices.of(tier)
        self.add(subject, "writes", tier, a_month, price=commit.write)
        if blocks > 1:
            self.add(subject, "writes", "hot", a_month * blocks, price=self.prices.of("hot").write)

    def move(self, subject: str, tiers: Sequence[TierAt], a_month: float, lives: Sequence[Lifetime]) -> None:
        """Add the operations of moving so many objects from tier to tier."""
        for life in lives:
            for _, later in pairwise(stays(tiers, life.lasting)):
                price = self.prices.of(later.tier).write
                self.add(subject, "tier changes", later.tier, a_month * life.share, price=price)

    def lines(self) -> tuple[CostLine, ...]:
        return tuple(
            CostLine(
                subject=subject,
                item=item,
                tier=tier,
                amount=amount,
                unit="GB" if item in _BY_SIZE else "operations",
                price=price,
                dollars=amount * price / (1 if item in _BY_SIZE else 10_000),
            )
            for (subject, item, tier, price), amount in self._amounts.items()
            if price
        )


_BY_SIZE: tuple[Item, ...] = ("storage", "paid but not used", "retrieval", "replication")


def _backups(bill: _Bill, policy: RetentionPolicy, backups: BackupLoad, lives: Sequence[Lifetime]) -> None:
    tiers = _tiers(policy, backups.system, backups.kind)
    a_month = MONTH * (DAY / backups.every)
    objects = _objects(backups, bill.load)
    bill.store(backups.name, tiers, backups.daily / GB, lives)
    bill.put(backups.name, tiers[0].tier, min(backups.size, bill.load.object_size), a_month * objects)
    bill.put(backups.name, "hot", 0, a_month * RECORDS)
    bill.move(backups.name, tiers, a_month * objects, lives)
    bill.add(backups.name, "replication", "hot", a_month * backups.size / GB, price=bill.prices.replication)
    mean = sum(life.share * (life.lasting / backups.every) for life in lives)
    bill.objects += mean * (objects + RECORDS)
    bill.manifests[backups.system] += mean


def _log(bill: _Bill, policy: RetentionPolicy, log: LogLoad, lasting: timedelta) -> None:
    lives = [Lifetime(1.0, lasting)]
    stored, entries = log.size / log.ratio, log.size / log.segment
    bill.store(log.name, policy.log_tiers, stored / GB, lives)
    bill.put(log.name, policy.log_tiers[0].tier, int(log.segment / log.ratio), MONTH * entries)
    bill.move(log.name, policy.log_tiers, MONTH * entries, lives)
    bill.add(log.name, "replication", "hot", MONTH * stored / GB, price=bill.prices.replication)
    bill.put(f"{log.name}, watermarks", "hot", 0, MONTH * log.active * (DAY / log.mark))
    bill.objects += (entries + log.active * (DAY / log.mark)) * (lasting / DAY)
    if log.interval is not None:
        name, slices = f"{log.name}, slices", log.active * (DAY / log.interval)
        bill.store(name, [TierAt(tier="hot")], stored / GB, [Lifetime(1.0, log.until_pruned)])
        bill.put(name, "hot", 0, MONTH * slices)
        bill.objects += slices * (log.until_pruned / DAY)


def _restores(bill: _Bill, policy: RetentionPolicy, restores: RestoreLoad) -> None:
    load, subject = bill.load, f"{restores.system} restores"
    for backups, count in _chain(load, restores):
        tier = tier_at(_tiers(policy, backups.system, backups.kind), restores.age)
        objects = restores.a_month * count * _objects(backups, load)
        _read(bill, restores, subject, tier, objects=objects, size=restores.a_month * count * backups.size / GB)
    for log in load.logs:
        wanted = load.backup(restores.system, restores.kind)
        if log.system == restores.system and restores.kind in log.kinds and wanted is not None:
            days = restores.a_month * (wanted.every / DAY) / 2  # a moment lies half-way between two backups
            tier = tier_at(policy.log_tiers, restores.age)
            size = days * log.size / log.ratio / GB
            _read(bill, restores, subject, tier, objects=days * log.size / log.segment, size=size)


def _read(bill: _Bill, restores: RestoreLoad, subject: str, tier: Tier, *, objects: float, size: float) -> None:
    price, hot = bill.prices.of(tier), bill.prices.of("hot")
    urgent = restores.urgent and tier == "archive"
    bill.add(subject, "reads", tier, objects, price=price.urgent_read if urgent else price.read)
    bill.add(subject, "retrieval", tier, size, price=price.urgent_retrieval if urgent else price.retrieval)
    if tier == "archive":
        bill.add(subject, "writes", "hot", objects, price=hot.write)
        bill.add(subject, "reads", "hot", objects, price=hot.read)
        bill.add(subject, "storage", "hot", size * (restores.copied / DAY / MONTH), price=hot.storage)


def _chain(load: Load, restores: RestoreLoad) -> Iterator[tuple[BackupLoad, float]]:
    """Yield what a restore reads, and how many of each on average."""
    wanted = load.backup(restores.system, restores.kind)
    if wanted is None:
        raise ValueError(f"there is no load of {restores.system} {restores.kind} that could be restored")
    full = load.backup(wanted.system, wanted.builds_on) if wanted.builds_on is not None else None
    if full is None:
        yield wanted, 1.0
        return
    yield full, 1.0
    yield wanted, (full.every / wanted.every + 1) / 2


def _looks(bill: _Bill) -> None:
    """Add the listings, and the manifests that are read for every increment and every listing."""
    hot, load = bill.prices.of("hot"), bill.load
    bill.add("catalogue", "lists", "hot", load.listed * bill.objects / LISTED_AT_ONCE, price=hot.list)
    for system, count in bill.manifests.items():
        increments = [each for each in load.backups if each.system == system and each.builds_on is not None]
        looks = load.listed + sum(MONTH * (DAY / each.every) for each in increments)
        bill.add("catalogue", "reads", "hot", looks * count, price=hot.read)


def _objects(backups: BackupLoad, load: Load) -> int:
    return max(1, -(-backups.size // load.object_size))


def _tiers(policy: RetentionPolicy, system: str, kind: str) -> tuple[TierAt, ...]:
    rule = policy.rule(system, kind)
    return rule.tiers if rule is not None else (TierAt(tier="hot"),)


def _endless(policy: RetentionPolicy, load: Load, forever: timedelta) -> Iterator[Finding]:
    for backups in load.backups:
        if policy.rule(backups.system, backups.kind) is None:
            text = f"no rule is about it, so it grows by {backups.daily * MONTH / GB:,.1f} GB a month for ever"
            hint = f"this is what it costs after {forever.days} days; give it a rule"
            yield Finding(severity="warning", subject=backups.name, text=text, hint=hint)


def _unused(lines: Sequence[CostLine], prices: Prices) -> Iterator[Finding]:
    for tier in prices.tiers:
        wasted = sum(line.dollars for line in lines if line.item == "paid but not used" and line.tier == tier)
        if wasted:
            days = prices.of(tier).minimum.days
            text = f"${wasted:,.2f} a month are for what leaves it before the {days} days that are paid for anyway"
            yield Finding(severity="note", subject=f"tier {tier}", text=text)
