"""What a state recorder writes down, and since when it may say that a set of synchronous standbys has held."""

from __future__ import annotations

from datetime import datetime

from attrs import evolve, field, frozen

from resilience.model.groups import GroupFacts, Sample, SyncSet
from resilience.model.positions import Position


@frozen(kw_only=True)
class Watch:
    """What was seen of who acknowledges a write: twice the same, and it is worth writing down.

    A server takes a new setting up process by process: just after it has changed, a write may still have been
    acknowledged under the old one. So the first sight of a set proves nothing yet; `since` is where the primary was at
    the second one.
    """

    key: tuple[object, ...] | None = field(default=None)
    since: Position | None = None

    def seen(self, facts: GroupFacts, *, at: datetime) -> tuple[Watch, Sample]:
        """Return what is to be recorded of a survey that began `at`, and what is known from then on."""
        primary = facts.member(facts.primary)
        alive = primary is not None and primary.reachable and primary.role == "primary"
        position = primary.durable if alive and primary is not None else None
        sample = Sample(group=facts.group, at=at, primary=facts.primary, position=position, members=facts.members)
        if facts.sync is None or position is None:
            return Watch(), sample
        key = (facts.primary, position.branch, frozenset(facts.sync.members), facts.sync.needed)
        if key != self.key:
            return Watch(key=key), evolve(sample, sync=None if facts.sync.needed else _recorded(facts.sync, None))
        watch = self if self.since is not None else evolve(self, since=position)
        return watch, evolve(sample, sync=_recorded(facts.sync, watch.since))

    @property
    def settled(self) -> bool:
        """Whether what was seen last had been seen before."""
        return self.since is not None


def _recorded(sync: SyncSet, since: Position | None) -> SyncSet:
    return evolve(sync, since=since, recorded=True)
