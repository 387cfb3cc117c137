"""How long backups live under a policy: by letting one period of them come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from attrs import frozen

from resilience.model.loads import BackupLoad, Load, LogLoad
from resilience.model.retention import RetentionPolicy, RetentionRule

MOST = 100_000
"""How many backups of a kind a period is looked at with; in a longer one the rest lives as these do."""


@frozen
class Lifetime:
    """A share of all backups of a kind lives that long."""

    share: float
    lasting: timedelta


def lifetimes(policy: RetentionPolicy, load: Load, of: BackupLoad, *, forever: timedelta) -> tuple[Lifetime, ...]:
    """Return how long backups of a kind live until nothing wants them, themselves or as what others build on.

    `forever` stands for the lifetime of what no rule is about. A prune is taken to run whenever one is due.
    """
    if policy.rule(of.system, of.kind) is None:
        return (Lifetime(1.0, forever),)
    children = [each for each in load.backups if each.system == of.system and each.builds_on == of.kind]
    own = _Series.of(policy, load, of, forever)
    if of.builds_on is not None:
        own = own.in_chains(_span(load, of))
    for child in children:
        own = own.needed_by(_Series.of(policy, load, child, forever))
    if policy.window is not None and any(of.system == log.system and of.kind in log.kinds for log in load.logs):
        own = own.at_least(policy.window + of.every)
    return own.shares()


def log_lifetime(policy: RetentionPolicy, load: Load, log: LogLoad, *, forever: timedelta) -> timedelta:
    """Return how long the log is kept: as long as the oldest backup that it continues, or that a window needs."""
    continued = [each for each in load.backups if each.system == log.system and each.kind in log.kinds]
    if policy.window is not None and continued:
        return policy.window + min(each.every for each in continued)
    spans = [each.lasting for backup in continued for each in lifetimes(policy, load, backup, forever=forever)]
    return max(spans, default=forever)


def _span(load: Load, of: BackupLoad) -> timedelta:
    """Return how far apart the full backups are that one builds on."""
    full = load.backup(of.system, of.builds_on or "")
    return full.every if full is not None else of.every


@frozen
class _Series:
    """Backups that are taken `every` so often, and how long each lives, of one period."""

    every: timedelta
    lasting: Sequence[timedelta]

    @staticmethod
    def of(policy: RetentionPolicy, load: Load, backups: BackupLoad, forever: timedelta) -> _Series:
        """Say what the rule alone wants, over the longest period that any rule of the system has."""
        rules = [rule for rule in policy.rules if rule.system == backups.system]
        spans = [keep.every for rule in rules for keep in rule.keep if keep.every is not None]
        spans += [each.every for each in load.backups if each.system == backups.system]
        count = min(MOST, -(-max(spans) // backups.every))
        rule = policy.rule(backups.system, backups.kind)
        if rule is None:
            return _Series(backups.every, [forever] * count)
        return _Series(backups.every, [_wanted(rule, number, backups.every) for number in range(count)])

    def in_chains(self, span: timedelta) -> _Series:
        """Let each live as long as those after it that build on it."""
        lasting = list(self.lasting)
        for number in reversed(range(len(lasting) - 1)):
            if (number + 1) * self.every // span == number * self.every // span:
                lasting[number] = max(lasting[number], lasting[number + 1] + self.every)
        return _Series(self.every, lasting)

    def needed_by(self, children: _Series) -> _Series:
        """Let each live as long as the increments that build on it."""
        lasting = list(self.lasting)
        for number, wanted in enumerate(children.lasting):
            at = number * children.every
            full = at // self.every
            if full < len(lasting):
                lasting[full] = max(lasting[full], wanted + (at - full * self.every))
        return _Series(self.every, lasting)

    def at_least(self, span: timedelta) -> _Series:
        """Let none go before it is that old."""
        return _Series(self.every, [max(each, span) for each in self.lasting])

    def shares(self) -> tuple[Lifetime, ...]:
        """Sum up how many live how long."""
        counts = Counter(self.lasting)
        return tuple(Lifetime(counts[lasting] / len(self.lasting), lasting) for lasting in sorted(counts))


def _wanted(rule: RetentionRule, number: int, every: timedelta) -> timedelta:
    """Return how long a rule wants the backup of a number: it is the newest until the next is there."""
    spans = [rule.at_least * every]
    for keep in rule.keep:
        newest = keep.every is None or number * every // keep.every != (number + 1) * every // keep.every
        spans.append(keep.lasting if newest else min(keep.lasting, every))
    return max(spans)
