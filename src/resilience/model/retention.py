"""Retention: what is kept of every kind of data, for how long, and in which tier. Declared, as data."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from attrs import field, frozen
from attrs.validators import ge

from .show import Shown

Tier = Literal["hot", "cool", "cold", "archive"]
"""Azure's access tiers, the dearest to keep and cheapest to read first."""


@frozen(kw_only=True)
class Keep(Shown):
    """Until it is `lasting` old, the newest backup of every `every` is kept; without `every`, each one."""

    lasting: timedelta
    every: timedelta | None = None


@frozen(kw_only=True)
class TierAt(Shown):
    """From the age `after` on, objects lie in `tier`."""

    tier: Tier
    after: timedelta = timedelta(0)


@frozen(kw_only=True)
class RetentionRule(Shown):
    """What is kept of one kind of backup of one system; a backup stays while any of `keep` wants it.

    The `at_least` newest stay however old they are. `tiers` are in the order of their ages; the first says what is
    written to. The log has no rule of its own: it is kept from the oldest kept backup on that it continues.
    """

    system: str
    kind: str
    keep: tuple[Keep, ...]
    at_least: int = field(default=1, validator=ge(0))
    tiers: tuple[TierAt, ...] = (TierAt(tier="hot"),)


@frozen(kw_only=True)
class RetentionPolicy(Shown):
    """The rules of all kinds of backup. What no rule is about is kept for ever, and so are the ids in `forever`.

    Leftovers of attempts that failed go once they are older than `grace`.
    """

    rules: tuple[RetentionRule, ...]
    forever: frozenset[str] = frozenset()
    grace: timedelta = timedelta(days=1)

    def rule(self, system: str, kind: str) -> RetentionRule | None:
        """Return the rule for a kind of backup; None if there is none."""
        return next((rule for rule in self.rules if (rule.system, rule.kind) == (system, kind)), None)
