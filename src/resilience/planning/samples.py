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

    After a `gap`, in which nobody could look, it counts anew: another set may have held meanwhile. Unless the same run
    of the server has not read its settings again since it was seen `last`.
    """

    key: tuple[object, ...] | None = field(default=None)
    since: Position | None = None
    instance: str = ""
    last: datetime | None = None
    gap: bool = False

    def interrupted(self) -> Watch:
        """Return what is known once a look has failed."""
        return evolve(self, gap=True)

    def seen(self, facts: GroupFacts, *, at: datetime) -> tuple[Watch, Sample]:
        """Return what is to be recorded of a survey that began `at`, and what is known from then on."""
        primary = facts.member(facts.primary)
        alive = primary is not None and primary.reachable and primary.role == "primary"
        position = primary.reached if alive and primary is not None else None
        sample = Sample(group=facts.group, at=at, primary=facts.primary, position=position, members=facts.members)
        if facts.sync is None or position is None:
            return self.interrupted(), sample
        key = (facts.primary, position.branch, frozenset(facts.sync.members), facts.sync.needed)
        instance = primary.instance if primary is not None else ""
        here = Watch(key=key, instance=instance, last=facts.sync.at)
        if key != self.key or (self.gap and not self._same(facts.sync, instance)):
            return here, evolve(sample, sync=None if facts.sync.needed else _recorded(facts.sync, None))
        watch = evolve(here, since=self.since or position)
        return watch, evolve(sample, sync=_recorded(facts.sync, watch.since))

    def _same(self, sync: SyncSet, instance: str) -> bool:
        """Tell whether no other set can have held since the last look, though nobody looked."""
        read = sync.loaded_at
        known = read is not None and self.last is not None and read < self.last
        return bool(instance) and instance == self.instance and known

    @property
    def settled(self) -> bool:
        """Whether what was seen last had been seen before."""
        return self.since is not None


def _recorded(sync: SyncSet, since: Position | None) -> SyncSet:
    return evolve(sync, since=since, recorded=True)
