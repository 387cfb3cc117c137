"""Retention: what is kept of every kind of data, for how long, and in which tier. Declared, as data."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from attrs import field, frozen
from attrs.validators import ge

from .moments import not_negative, positive
from .show import Shown

Tier = Literal["hot", "cool", "cold", "archive"]
"""Azure's access tiers, the dearest to keep and cheapest to read first."""


@frozen(kw_only=True)
class Keep(Shown):
    """Until it is `lasting` old, the newest backup of every `every` is kept; without `every`, each one.

    A backup is as old as its end, and belongs to the hour, day, … of UTC in which it was begun.
    """

    lasting: timedelta = field(validator=positive)
    every: timedelta | None = field(default=None, validator=positive)


@frozen(kw_only=True)
class TierAt(Shown):
    """From the age `after` on, objects lie in `tier`."""

    tier: Tier
    after: timedelta = timedelta(0)


@frozen(kw_only=True)
class RetentionRule(Shown):
    """What is kept of one kind of backup of one system; a backup stays while any of `keep` wants it.

    The `at_least` newest stay however old they are. `tiers` are in the order of their ages; the first says what is
    written to. The log has no rule of its own; `RetentionPolicy` says how much of it stays. A rule that would keep
    nothing raises ValueError.
    """

    system: str
    kind: str
    keep: tuple[Keep, ...]
    at_least: int = field(default=1, validator=ge(0))
    tiers: tuple[TierAt, ...] = (TierAt(tier="hot"),)

    def __attrs_post_init__(self) -> None:
        if not self.keep and not self.at_least:
            raise ValueError(f"a rule that keeps no {self.system} {self.kind} at all: give it a Keep, or at_least=1")


@frozen(kw_only=True)
class RetentionPolicy(Shown):
    """The rules of all kinds of backup. What no rule is about is kept for ever, and so are the ids in `forever`.

    The log is kept from the oldest kept backup on that it continues. With a `window` it is kept only as far as every
    moment of the last `window` needs it, and so are the backups that these moments start from, whatever the rules say;
    an older backup then brings back the one moment it was taken at.

    Leftovers of attempts that failed go once nothing of them was written for `grace`; so do slices of the log that a
    whole segment has superseded for so long. Two rules for the same kind raise ValueError.

    `log_tiers` are those that the log's segments lie in; what is small or short-lived is never moved.
    """

    rules: tuple[RetentionRule, ...]
    forever: frozenset[str] = frozenset()
    grace: timedelta = field(default=timedelta(days=1), validator=not_negative)
    window: timedelta | None = field(default=None, validator=positive)
    log_tiers: tuple[TierAt, ...] = (TierAt(tier="hot"),)

    def __attrs_post_init__(self) -> None:
        kinds = [(rule.system, rule.kind) for rule in self.rules]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"more than one rule for {', '.join(sorted(map(' '.join, twice)))}")

    def rule(self, system: str, kind: str) -> RetentionRule | None:
        """Return the rule for a kind of backup; None if there is none."""
        return next((rule for rule in self.rules if (rule.system, rule.kind) == (system, kind)), None)
